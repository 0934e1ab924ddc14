"""The driver of a run: checks before anything is started, Ray, events, and what is said to the person."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from cluster.checkpoint import CheckpointInfo, find_checkpoint, list_checkpoints, newest_verified
from cluster.config import RunConfig
from cluster.errors import ClusterError, ResourcesError, RunBusyError
from cluster.evaluation.late import evaluations_are_missing
from cluster.evaluation.task import require_something_to_evaluate
from cluster.healing import Decisions
from cluster.initial_weights import InitialWeights, check_initial_weights, check_vocabulary
from cluster.jobs.guardian import Charge, start_guardian
from cluster.jobs.submission import Submission
from cluster.lease import Lease, forget, hold
from cluster.never_reached import never_reached
from cluster.on_ray.preflight import check_cluster, examine_node
from cluster.on_ray.ray_cluster import Cluster, connect
from cluster.on_ray.session import Desk, Listener, train_on_ray
from cluster.record.logs import METRICS_NAME, EventsLog, read_lines
from cluster.record.post_mortem import write_post_mortem
from cluster.record.wandb_mirror import Mode, TrackingSettings, announce_failure, check_reachable
from cluster.resolution import model_of_run, open_plan
from cluster.resume import Change, check_plan, check_resume, not_applied
from cluster.run_directory import (
    PUBLISHED_STEP,
    RUN_NAME,
    TOKENIZER_NAME,
    RunDirectory,
    config_as_dict,
    end_setting_aside,
    is_half_set_aside,
    prepare_storage,
    set_aside,
)
from cluster.storage.operations import StoragePath, make_directory, storage_path, write_atomically
from cluster.storage.retry import retried
from data_pipeline.config import MixtureEntry
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan, TrainingLedger
from data_pipeline.skip_ledger import SkipLedger

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_JOB = "job"
"""Key in run.json: the first submission of the chain of jobs that works on the run."""
_PATIENCE_SECONDS = 3600.0
_RETRY_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """How a run stands after the command."""

    run_directory: StoragePath
    step: int
    status: str
    """`finished` or `stopped`."""
    validation: dict[str, dict[str, float | None]]
    """Figures of the last evaluation by dataset name: loss, and perplexity or those of the task."""
    ledger: tuple[TrainingLedger, ...]
    """Tokens of each dataset, accounted for."""
    trained_now: bool
    """False when the run was finished before the command."""
    not_applied: tuple[Change, ...] = ()
    """Where it was: what the command asks for otherwise than the run was made."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What surrounds a run and does not belong to it."""

    resolved_yaml: str
    """Text of config.yaml."""
    wandb_mode: Mode
    wandb_server: str
    """Address of the W&B server."""
    wandb_api_key: str | None = field(default=None, repr=False)
    """Handed to rank 0 in memory; None lets W&B look for one itself."""
    fresh: bool = False
    """Set an existing run of this name aside."""
    ray_address: str | None = None
    """A running cluster; None starts a private one on this machine."""
    job: Submission | None = None
    """The Ray job that this driver runs as."""


def run_training(config: RunConfig, launch: Launch, listener: Listener) -> RunOutcome:
    """Train to the end, continuing whatever the run's directory holds.

    Args:
        config: The run; paths absolute.
        launch: Its surroundings.
        listener: Gets messages (phases, metrics, events, log lines) as they come, in the calling thread.

    Raises:
        ClusterError: The run was refused or failed; the message says why and what to do.
        data_pipeline.errors.DataError: The data cannot be used.
    """
    storage = storage_path(config.storage)
    directory = storage / config.name
    say = _teller(listener)
    if not isinstance(storage, Path):  # it must answer before it is asked for the run, and nothing is left there
        prepare_storage(storage, patient=launch.job is not None and launch.job.predecessor is not None)
    fresh = launch.fresh and not _was_begun_by(launch.job, directory)
    facts = {} if fresh else _facts(directory)
    plan = _open_plan(config, facts)
    if isinstance(storage, Path):
        prepare_storage(storage)
    newest = None if fresh or is_half_set_aside(directory) else _check_continuation(config, plan, directory)
    if newest is None:
        for told in never_reached(config):
            logger.warning(told)
    begins = newest is None and config.initialize_from is not None
    weights = check_initial_weights(config, plan, facts) if begins else None
    if newest is None and launch.wandb_mode == "online" and config.wandb.mode == "online":
        check_reachable(launch.wandb_server)  # asked for by name; a run that has begun spools instead
    make_directory(directory)
    try:
        with ExitStack() as held:
            cluster = _join(launch, directory, held, say) if launch.job else None
            lease = _patiently(
                launch.job, say, lambda: held.enter_context(hold(directory, job=_job_id(launch), say=say))
            )
            end_setting_aside(directory, lease.confirm)
            finished = newest is not None and newest.step >= config.train.max_steps
            if newest is not None and finished and not evaluations_are_missing(config, plan.datasets):
                events = EventsLog(directory, clock=time.time, token=lease.token)
                if _seen(lambda: events.last() == "finished", "the run's last event") is False:
                    events.write("finished", step=newest.step)
                outcome = _outcome(directory, plan, newest.step, "finished", trained_now=False)
                return replace(outcome, not_applied=_not_applied(config, newest))
            cluster = cluster or _join(launch, directory, held, say)
            fingerprints = {entry.path: dataset.fingerprint for entry, dataset in _datasets(config, plan)}
            device = newest.manifest.run["layout"]["device"] if newest and newest.manifest else None
            gpus_per_worker = _patiently(
                launch.job,
                say,
                lambda: check_cluster(
                    config, cluster, fingerprints, weights=_sight(weights), device_so_far=device, say=say
                ),
            )
            if fresh and RunDirectory(directory).exists():
                lease = _set_aside(directory, lease, launch, held, say)
            return _train(config, launch, plan, lease, listener, gpus_per_worker, weights)
    finally:
        _forget_unbegun(directory)


def _train(
    config: RunConfig,
    launch: Launch,
    plan: DataPlan,
    lease: Lease,
    listener: Listener,
    gpus_per_worker: int,
    weights: InitialWeights | None,
) -> RunOutcome:
    """Begin or continue the run that this driver holds, and tell its end."""
    directory = storage_path(config.storage) / config.name
    record = RunDirectory(directory)
    record.create(config, launch.resolved_yaml)
    if launch.job is not None:
        record.update({_JOB: launch.job.origin})
    _keep_tokenizer(config, directory)
    events = EventsLog(directory, clock=time.time, token=lease.token)
    tracking = _tracking(config, launch, record)
    fingerprints = {entry.path: dataset.fingerprint for entry, dataset in _datasets(config, plan)}
    desk = Desk(
        lease=lease,
        tracking=tracking,
        events=events,
        listener=listener,
        private_cluster=launch.ray_address is None,
        job=_job_facts(launch),
        examine=lambda node_id: examine_node(
            storage_path(config.storage),
            fingerprints,
            node_id,
            weights={} if PUBLISHED_STEP in record.facts() else _sight(weights),
        ),
    )
    try:
        result = train_on_ray(config, desk, gpus_per_worker=gpus_per_worker)
        lease.check()
    except BaseException as error:
        lease.check()  # if another driver has the run by now, the record is his, and that is what there is to say
        reason = str(error) or type(error).__name__
        events.write("failed", reason=reason)
        write_post_mortem(directory, status="failed", reason=reason, failures=desk.failures)
        if isinstance(error, Exception):  # a person at the keyboard does not wait for W&B
            announce_failure(tracking, directory, str(error))
        raise
    status: Literal["finished", "stopped"] = "finished" if result["finished"] else "stopped"
    listener({"type": "event", **events.write(status, step=result["step"], **result.get("spent", {}))})
    outcome = _outcome(directory, plan, result["step"], status, trained_now=True)
    ledger = {"token_ledger": [asdict(entry) for entry in outcome.ledger]}
    if outcome.ledger:
        _seen(lambda: record.update(ledger), "the account of tokens in run.json")
    write_post_mortem(directory, status=status, reason=None, failures=())
    return outcome


def _set_aside(
    directory: StoragePath, lease: Lease, launch: Launch, held: ExitStack, say: Callable[[str], None]
) -> Lease:
    """Move the old run out of the way; the lease that holds the place from then on."""
    if not isinstance(directory, Path):  # its lease stays where it is, and is renewed while the rest is copied
        say("setting the old run aside, object by object")
        say(f"set the old run aside as {set_aside(directory, lease.confirm)}")
        return lease
    lease.pause()
    say(f"set the old run aside as {set_aside(directory, lease.confirm)}")
    make_directory(directory)
    return held.enter_context(hold(directory, job=_job_id(launch), above=lease.token))


def _was_begun_by(job: Submission | None, directory: StoragePath) -> bool:
    """Whether the run in the directory was begun by this job, before its driver died."""
    record = RunDirectory(directory)
    return job is not None and record.exists() and record.facts().get(_JOB) == job.origin


def _join(launch: Launch, directory: StoragePath, held: ExitStack, say: Callable[[str], None]) -> Cluster:
    """Join the cluster or start one; inside a Ray job, have a guardian submit it again should this driver die."""
    say("joining the cluster" if launch.ray_address else "starting Ray")
    cluster = held.enter_context(connect(launch.ray_address))
    if launch.job is not None and cluster.dashboard_url is not None:
        start_guardian(
            Charge(origin=launch.job.origin, run_directory=str(directory), dashboard_url=cluster.dashboard_url)
        )
        say(f"job {launch.job.id} is guarded: should its driver die, it is submitted again")
    return cluster


def _patiently(job: Submission | None, say: Callable[[str], None], attempt: Callable[[], _T]) -> _T:
    """Attempt something; where a dead driver is replaced, again and again, because what is missing may come back.

    A person who submits a run is told at once what is missing. A successor whose predecessor died with a node waits
    for nodes, and for the lease of the dead to lapse, as long as a living driver would.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return attempt()
        except (ResourcesError, RunBusyError) as error:
            if job is None or job.predecessor is None or time.monotonic() > deadline:
                raise
            say(f"waiting: {error}")
            time.sleep(_RETRY_SECONDS)


def _teller(listener: Listener) -> Callable[[str], None]:
    return lambda text: listener({"type": "phase", "text": text})


def _job_id(launch: Launch) -> str | None:
    return launch.job.id if launch.job else None


def _job_facts(launch: Launch) -> dict[str, str]:
    """The submission, for the events that begin an attempt."""
    if launch.job is None:
        return {}
    return {"job": launch.job.id} | ({"continues_job": launch.job.predecessor} if launch.job.predecessor else {})


def _forget_unbegun(directory: StoragePath) -> None:
    """Leave nothing of a run that was refused before it began; what cannot be removed stays, whatever else is wrong."""
    with contextlib.suppress(OSError):
        if directory.is_dir() and not (directory / RUN_NAME).exists():
            forget(directory)
            if isinstance(directory, Path):
                directory.rmdir()


def _datasets(config: RunConfig, plan: DataPlan) -> Iterator[tuple[MixtureEntry, Dataset]]:
    return zip(config.data.entries, plan.datasets, strict=True)


def _sight(weights: InitialWeights | None) -> dict[str, str]:
    """Where the weights lie that the run begins with, and their fingerprint, for nodes to compare; else nothing."""
    return {str(weights.directory): weights.fingerprint} if weights is not None else {}


def _facts(directory: StoragePath) -> dict[str, Any]:
    record = RunDirectory(directory)
    return record.facts() if record.exists() else {}


def _open_plan(config: RunConfig, facts: Mapping[str, Any]) -> DataPlan:
    """Open the data and check what can be checked before anything is touched.

    Args:
        config: The run.
        facts: What its run.json holds, the sequences that healing left out among it; empty for a new run.
    """
    plan = open_plan(config)
    plan.check_steps(config.train.max_steps, Decisions.of(facts, config.healing).skips)
    check_vocabulary(config, plan.datasets[0].vocab_size)
    model_of_run(config, plan.datasets[0])
    require_something_to_evaluate(config, plan.datasets)
    return plan


def _check_continuation(config: RunConfig, plan: DataPlan, directory: StoragePath) -> CheckpointInfo | None:
    """Compare with what the run holds; a checkpoint that would end the run is verified byte by byte."""
    usable = [info for info in list_checkpoints(directory) if info.problem is None]
    if not usable:
        return None
    newest = usable[-1]
    if newest.step >= config.train.max_steps:
        verified = newest_verified(directory)
        if verified is None:
            return None
        newest = verified
    assert newest.manifest is not None
    check_resume(newest.manifest.run["config"], config_as_dict(config), step=newest.step, run=config.name)
    check_plan(newest.manifest.run["data_plan"], plan.describe(), step=newest.step, run=config.name)
    return newest


def _not_applied(config: RunConfig, newest: CheckpointInfo) -> tuple[Change, ...]:
    assert newest.manifest is not None
    return tuple(not_applied(newest.manifest.run["config"], config_as_dict(config)))


def _keep_tokenizer(config: RunConfig, directory: StoragePath) -> None:
    """Copy the tokenizer into the run, so that it generates text wherever it is moved."""
    source, target = Path(config.data.entries[0].path) / TOKENIZER_NAME, directory / TOKENIZER_NAME
    retried(lambda: write_atomically(target, source.read_bytes()), f"writing {target}")


def _tracking(config: RunConfig, launch: Launch, record: RunDirectory) -> TrackingSettings:
    wandb = record.facts()["wandb"]
    record.update({"wandb": {**wandb, "mode": launch.wandb_mode, "project": config.wandb.project}})
    return TrackingSettings(
        mode=launch.wandb_mode,
        project=config.wandb.project,
        run_id=wandb["id"],
        name=config.name,
        entity=config.wandb.entity,
        group=config.wandb.group,
        api_key=launch.wandb_api_key,
        job_type=config.task,
        tags=config.wandb.tags,
        notes=config.wandb.notes,
        server=launch.wandb_server,
    )


def _outcome(directory: StoragePath, plan: DataPlan, step: int, status: str, *, trained_now: bool) -> RunOutcome:
    """How the run stands, as far as its storage tells: what it holds was durable before it ended."""

    def read_validation() -> dict[str, dict[str, float | None]]:
        rows = read_lines(directory / METRICS_NAME)
        told = (row for row in rows if row["kind"] == "eval")
        return {
            row["name"]: {key.removeprefix("eval/"): row[key] for key in row if key.startswith("eval/")} for row in told
        }

    def account() -> tuple[TrainingLedger, ...]:
        manifest = find_checkpoint(directory).manifest if list_checkpoints(directory) else None
        skips = SkipLedger.from_json(manifest.run["skip_ledger"]) if manifest is not None else SkipLedger()
        return plan.ledger(step, skips)

    validation = _seen(read_validation, "the last validation") or {}
    ledger = _seen(account, "the account of tokens") or ()
    return RunOutcome(
        run_directory=directory,
        step=step,
        status=status,
        validation=validation,
        ledger=ledger,
        trained_now=trained_now,
    )


def _seen(look: Callable[[], _T], what: str) -> _T | None:
    """Look at a run that has ended, or add to what is said of it; None where the storage fails: its end is no other."""
    try:
        return retried(look, what)
    except (OSError, ClusterError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        logger.warning("the run has ended well; only %s is missing here: %s", what, said)
        return None


__all__ = ["Launch", "RunOutcome", "run_training"]
