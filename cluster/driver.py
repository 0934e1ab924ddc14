"""The driver of a run: checks before anything is started, Ray, events, and what is said to the person."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.checkpoint import CheckpointInfo, find_checkpoint, list_checkpoints, newest_verified
from cluster.config import RunConfig
from cluster.ray_session import Listener, train_on_ray
from cluster.record import METRICS_NAME, EventsLog, read_lines
from cluster.resolution import resolve_model
from cluster.resume import check_plan, check_resume
from cluster.run_directory import (
    TOKENIZER_NAME,
    RunDirectory,
    config_as_dict,
    exclusive,
    prepare_storage,
    set_aside,
)
from cluster.wandb_mirror import Mode, TrackingSettings, check_reachable
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan, TrainingLedger
from data_pipeline.publish import write_atomically
from data_pipeline.skip_ledger import SkipLedger


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """How a run stands after the command."""

    run_directory: Path
    step: int
    status: str
    """`finished` or `stopped`."""
    validation: dict[str, float]
    """Last validation perplexity by dataset name."""
    ledger: tuple[TrainingLedger, ...]
    """Tokens of each dataset, accounted for."""
    trained_now: bool
    """False when the run was finished before the command."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What surrounds a run and does not belong to it."""

    resolved_yaml: str
    """Text of config.yaml."""
    wandb_mode: Mode
    wandb_server: str
    """Address of the W&B server."""
    fresh: bool = False
    """Set an existing run of this name aside."""
    ray_address: str | None = None
    """A running cluster; None starts a private one on this machine."""


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
    directory = Path(config.storage) / config.name
    plan = _open_plan(config)
    prepare_storage(Path(config.storage))
    if launch.fresh and directory.exists():
        with exclusive(directory):
            moved = set_aside(directory)
        listener({"type": "phase", "text": f"set the old run aside as {moved}"})
    newest = _check_continuation(config, plan, directory)
    if newest is None and config.wandb.mode == "online":  # asked for by name; a run that has begun spools instead
        check_reachable(launch.wandb_server)
    directory.mkdir(exist_ok=True)
    with exclusive(directory):
        events = EventsLog(directory, clock=time.time)
        if newest is not None and newest.step >= config.train.max_steps:
            if events.last() != "finished":
                events.write("finished", step=newest.step)
            return _outcome(directory, plan, newest.step, "finished", trained_now=False)
        record = RunDirectory(directory)
        record.create(config, launch.resolved_yaml)
        _keep_tokenizer(config, directory)
        listener({"type": "phase", "text": "starting Ray"})
        try:
            tracking = _tracking(config, launch, record)
            result = train_on_ray(config, launch.ray_address, tracking, events, listener)
        except BaseException as error:
            events.write("failed", reason=str(error) or type(error).__name__)
            raise
        status = "finished" if result["finished"] else "stopped"
        listener({"type": "event", **events.write(status, step=result["step"])})
        outcome = _outcome(directory, plan, result["step"], status, trained_now=True)
        record.update({"token_ledger": [asdict(entry) for entry in outcome.ledger]})
        return outcome


def _open_plan(config: RunConfig) -> DataPlan:
    """Open the data and check what can be checked before anything is touched."""
    datasets = [Dataset.open(entry.path) for entry in config.data.entries]
    plan = DataPlan(datasets, config.data, seed=config.seed, global_batch_size=config.train.global_batch_size)
    plan.check_steps(config.train.max_steps)
    resolve_model(config.model, datasets[0].vocab_size)
    return plan


def _check_continuation(config: RunConfig, plan: DataPlan, directory: Path) -> CheckpointInfo | None:
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


def _keep_tokenizer(config: RunConfig, directory: Path) -> None:
    """Copy the tokenizer into the run, so that it generates text wherever it is moved."""
    source = Path(config.data.entries[0].path) / TOKENIZER_NAME
    write_atomically(directory / TOKENIZER_NAME, source.read_bytes())


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
    )


def _outcome(directory: Path, plan: DataPlan, step: int, status: str, *, trained_now: bool) -> RunOutcome:
    validation = {
        row["name"]: row["eval/perplexity"] for row in read_lines(directory / METRICS_NAME) if row["kind"] == "eval"
    }
    manifest = find_checkpoint(directory).manifest
    skips = SkipLedger.from_json(manifest.run["skip_ledger"]) if manifest is not None else SkipLedger()
    return RunOutcome(
        run_directory=directory,
        step=step,
        status=status,
        validation=validation,
        ledger=plan.ledger(step, skips),
        trained_now=trained_now,
    )


__all__ = ["Launch", "RunOutcome", "run_training"]
