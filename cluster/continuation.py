"""Where an attempt begins: the newest checkpoint that is whole, fits the run and gives the loss it was saved with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.checkpoint import (
    CheckpointInfo,
    CheckpointReader,
    LocalCopies,
    Manifest,
    VerifiedFiles,
    list_checkpoints,
    reject,
    reject_if_possible,
    rejected_for_loss,
)
from cluster.checkpoint.manifest import attempt_name
from cluster.checkpoint.reach import is_gone
from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.engines.protocol import Engine, StateSource
from cluster.errors import CheckpointError, CheckpointMismatchError, CheckpointUnreadableError, RunRefusedError
from cluster.healing import HEALING, Decisions, of_another_history
from cluster.record.logs import EVENTS_NAME, read_lines
from cluster.resume import check_plan, check_resume
from cluster.run_directory import PUBLISHED_STEP, RunDirectory, config_as_dict
from cluster.storage.operations import StoragePath, storage_path
from cluster.topology import Layout, Precision, Topology
from data_pipeline.plan import DataPlan
from data_pipeline.skip_ledger import SkipLedger

logger = logging.getLogger(__name__)

LOSS_TOLERANCE: dict[str, float] = {"fp32": 1e-5, "bf16": 5e-3}
"""Resume law: relative difference allowed between the next batch's loss when saved and when loaded."""
_SMALLEST_LOSS = 1e-2
"""Below this the difference is measured against it: a memorised batch has a loss of rounding errors."""
_MAY_CHANGE_ROUNDING = ("precision", "device", "attention", "experts", "compiled", "versions")
"""Parts of a layout whose change explains another loss better than a bad checkpoint does."""


@dataclass(frozen=True)
class Beginning:
    """The state before the first step."""

    state: StateSource
    lineage: Mapping[str, Any] | None = None
    """Whose weights they are, where they are not random."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """State that was loaded. `info` and `manifest` are None where the run begins."""

    step: int
    decisions: Decisions
    """What healing decided before, after this step too."""
    changes: tuple[str, ...]
    """What was changed since the checkpoint and is allowed."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """What the judgement of the next losses depends on; see `HealthWatch.memory`."""
    info: CheckpointInfo | None = None
    manifest: Manifest | None = None
    same_next_batch: bool = True
    """Whether the batch that comes next is the one whose loss the checkpoint holds."""
    initialized_from: Mapping[str, Any] | None = None
    """Whose weights the run begins with, where it begins here and they are not random."""

    def check_loss(self, loss: float, precision: Precision) -> str | None:
        """Compare the first loss with that which the saved state gave.

        Returns:
            Why the checkpoint must be rejected, or None.
        """
        if self.manifest is None or self.manifest.next_batch_loss is None or not self.same_next_batch:
            return None
        expected = self.manifest.next_batch_loss
        tolerance = max(LOSS_TOLERANCE[self.manifest.run["layout"]["precision"]], LOSS_TOLERANCE[precision])
        difference = abs(loss - expected) / max(abs(expected), _SMALLEST_LOSS)
        if difference <= tolerance:
            return None
        return (
            f"the loss of step {self.step + 1} is {loss:.8g} with the loaded state and was {expected:.8g} with the "
            f"saved one: {difference:.2e} apart, more than the {tolerance:.0e} that rounding allows"
        )


def load_newest(
    engine: Engine,
    begin: Callable[[Mapping[str, Any]], Beginning],
    *,
    config: RunConfig,
    plan: DataPlan,
    topology: Topology,
    collectives: Collectives,
    post: Callable[[dict[str, Any]], None],
) -> Continuation:
    """Set the engine from the newest good checkpoint, or from the state that `begin` gives where there was never one.

    `begin` is called with what run.json holds, on all ranks.

    Damaged checkpoints are passed over one by one, each with an event that says why. The ranks share the work of
    verifying the files and agree on what they find.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
        CheckpointUnreadableError: One that may be whole cannot be read by some rank: another attempt may read it.
        CheckpointDamagedError: A rank found damage only while it was loading; another attempt takes the one before.
        RunRefusedError: What the curve depends on was changed.
    """
    directory = storage_path(config.storage) / config.name
    facts, candidates = collectives.from_main(_facts_and_candidates(directory) if topology.is_main else ({}, []))
    local = LocalCopies(Path(config.checkpoint.local_copy), directory) if config.checkpoint.local_copy else None
    for info in reversed(candidates):
        files = VerifiedFiles(info, local)
        abandoned = _abandoned(info, facts)
        if info.unreadable and not abandoned:
            raise CheckpointUnreadableError(f"rank 0: {info.problem}")
        problem = info.problem or abandoned or agreed_damage(files, topology, collectives)
        if problem is None and info.manifest is not None:
            changes = _check_continuation(info.manifest, config, plan)
            files.vouch(collectives.sum(files.found_in_storage()))
            engine.load(CheckpointReader(info.directory, info.manifest, files.path))
            return _continuation(info, info.manifest, facts, changes, plan=plan)
        if topology.is_main:
            if info.problem is None and problem is not None:
                kind: Literal["anomaly", "damage"] = "anomaly" if abandoned else "damage"
                reject_if_possible(info, problem, kind=kind)  # so that retention does not count on it
            if _is_told(info, directory):
                logger.info("passing over the checkpoint of step %d, which was rejected before", info.step)
            else:
                reason = info.rejection.reason if info.rejection is not None else problem
                post({"type": "event", "event": "checkpoint_rejected", "step": info.step, "reason": reason})
    if candidates:
        raise CheckpointError(
            f"no checkpoint of run {directory} can be used (it has {len(candidates)}); the newest: "
            f"{candidates[-1].problem or 'its files are damaged.'} Restore one from a copy, or begin anew with --fresh."
        )
    published = facts.get(PUBLISHED_STEP)
    if published is not None:
        raise RunRefusedError(
            f"run {directory} has saved checkpoints, the last at step {published}, and none is there now. Bring "
            f"{directory / 'checkpoints'} back (a volume that is not mounted?), or begin anew with --fresh."
        )
    beginning = begin(facts)
    engine.load(beginning.state)
    decisions = Decisions.of(facts, config.healing)
    return Continuation(step=0, decisions=decisions, changes=(), initialized_from=beginning.lineage)


def _facts_and_candidates(directory: StoragePath) -> tuple[dict[str, Any], list[CheckpointInfo]]:
    """What run.json says, and the checkpoints that may be whole or have lost something."""
    record = RunDirectory(directory)
    facts = record.facts() if record.exists() else {}
    found = list_checkpoints(directory)
    leftovers = [info for info in found if _is_leftover(info, facts.get("attempt", 0))]
    for info in leftovers:
        logger.info("passing over %s: its files are gone, as its attempt was superseded before", info.directory)
    return facts, [info for info in found if info not in leftovers]


def _is_leftover(info: CheckpointInfo, attempt: int) -> bool:
    """Whether only a manifest is there, of an attempt before this one: it came after its files had been removed.

    An attempt that is superseded while its request is on its way takes the manifest back, unless it is killed first.
    """
    manifest = info.manifest
    if manifest is None or info.problem is None or info.unreadable or manifest.attempt >= attempt:
        return False
    return is_gone(info.directory / attempt_name(manifest.attempt), info.directory)


def agreed_damage(files: VerifiedFiles, topology: Topology, collectives: Collectives) -> str | None:
    """What the first rank found to be damaged; None where the ranks together found every file good. Collective.

    Raises:
        CheckpointUnreadableError: On every rank, where one cannot read a file and none has proven damage.
    """
    found = files.verify_share(topology.rank, topology.world_size)
    out_of_reach = isinstance(found, CheckpointUnreadableError)
    damage = collectives.first_error(None if found is None or out_of_reach else str(found))
    if damage is None:
        unreadable = collectives.first_error(str(found) if found is not None else None)
        if unreadable is not None:
            raise CheckpointUnreadableError(unreadable)
    return damage


def _continuation(
    info: CheckpointInfo, manifest: Manifest, facts: Mapping[str, Any], changes: tuple[str, ...], *, plan: DataPlan
) -> Continuation:
    """Where a loaded checkpoint leads, under what healing has decided since it was taken."""
    at_save = _decisions_of(manifest)
    decisions = Decisions.from_json(facts[HEALING]) if HEALING in facts else at_save
    upcoming = [plan.batch_indices(info.step + 1, skips).tolist() for skips in (at_save.skips, decisions.skips)]
    return Continuation(
        step=info.step,
        decisions=decisions,
        changes=changes,
        memory=manifest.run.get(HEALING, {}),
        info=info,
        manifest=manifest,
        same_next_batch=upcoming[0] == upcoming[1],
    )


def _decisions_of(manifest: Manifest) -> Decisions:
    """What healing had decided when a checkpoint was taken."""
    saved = manifest.run.get(HEALING)
    skips = SkipLedger.from_json(manifest.run["skip_ledger"])
    return Decisions(skips=skips, withheld=tuple(saved["withheld"]) if saved else ())


def _abandoned(info: CheckpointInfo, facts: Mapping[str, Any]) -> str | None:
    """Why a checkpoint belongs to a course that the run has left; None where it does not."""
    if info.manifest is None or HEALING not in facts:
        return None
    position = int(info.manifest.run["data_position"])
    decided = Decisions.from_json(facts[HEALING])
    if not of_another_history(decided, _decisions_of(info.manifest), step=info.step, position=position):
        return None
    return (
        f"the run was rolled back past step {info.step} since checkpoint {info.directory} was taken, and goes on with "
        "other batches: run.json holds what was decided."
    )


def reject_loaded(
    continuation: Continuation,
    reason: str,
    *,
    layout: Layout,
    topology: Topology,
    post: Callable[[dict[str, Any]], None],
) -> None:
    """Give up the loaded checkpoint, so that the next attempt takes the one before; but do not condemn all of them.

    Raises:
        CheckpointMismatchError: The checkpoint was rejected; a new attempt takes the one before.
        RunRefusedError: The cause is rather what this attempt runs on: libraries, device or arithmetic were changed, or
            a second checkpoint gives another loss too.
    """
    assert continuation.info is not None
    assert continuation.manifest is not None
    differences = layout.differences(continuation.manifest.run["layout"])
    suspects = {key: value for key, value in differences.items() if key in _MAY_CHANGE_ROUNDING}
    run_directory = continuation.info.directory.parent.parent
    others = rejected_for_loss(run_directory, after_step=continuation.step)
    if suspects or others:
        cause = f"changed since then: {suspects}" if suspects else f"so it was with the checkpoints of steps {others}"
        raise RunRefusedError(
            f"checkpoint {continuation.info.directory} loads whole, but {reason}; {cause}. Nothing is lost. Go on with "
            "what it was saved with (the manifest's `layout` says what that is), or look for a fault of this machine; "
            "where a REJECTED.json was in the wrong, remove it."
        )
    if topology.is_main:
        reject(continuation.info, reason, kind="loss")
        post({"type": "event", "event": "checkpoint_rejected", "step": continuation.step, "reason": reason})
    raise CheckpointMismatchError(f"checkpoint {continuation.info.directory} was rejected: {reason}.")


def _is_told(info: CheckpointInfo, directory: StoragePath) -> bool:
    """Whether the record has an event of this very rejection."""
    rejection = info.rejection
    return rejection is not None and any(
        (row.get("event"), row.get("step"), row.get("reason")) == ("checkpoint_rejected", info.step, rejection.reason)
        for row in read_lines(directory / EVENTS_NAME)
    )


def _check_continuation(manifest: Manifest, config: RunConfig, plan: DataPlan) -> tuple[str, ...]:
    run = manifest.run
    logged = check_resume(run["config"], config_as_dict(config), step=manifest.step, run=config.name)
    check_plan(run["data_plan"], plan.describe(), step=manifest.step, run=config.name)
    return tuple(str(change) for change in logged)
