"""What must hold of a run once it is finished, whatever happened to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from chaos_run import KEEP_LAST, ChaosRun
from scenarios import STEPS, Scenario

from cluster.checkpoint import find_checkpoint, list_checkpoints, verify
from cluster.checkpoint.manifest import attempt_name
from cluster.lease import newest_record
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, list_sizes


def judge(run: ChaosRun, scenario: Scenario, undisturbed: Sequence[dict[str, Any]]) -> str:
    """Assert all of it; gives a line about what the disturbances cost."""
    left = run.stage.cluster.wait_for_quiet()
    assert not left, f"processes of the run are left: {left}"
    record = run.record
    steps = [row["step"] for row in record if row["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1)), f"steps in the record: {steps}"
    assert record == list(undisturbed), _first_difference(record, undisturbed)
    assert run.events[-1]["event"] == "finished", f"the last event: {run.events[-1]}"
    lease = newest_record(run.directory)
    assert lease is not None, "nobody ever held the run"
    assert lease.released, f"the lease is held: {lease}"
    _judge_checkpoints(run, scenario)
    lost = _judge_lost_work(run, scenario)
    return f"{run.commands} commands, {_attempts(run)} attempts, {lost} steps made twice"


def _judge_checkpoints(run: ChaosRun, scenario: Scenario) -> None:
    """The last one is whole, retention has worked, and nothing lies there that no manifest names."""
    verify(find_checkpoint(run.directory, STEPS))
    infos = list_checkpoints(run.directory)
    damaged = sum(each.damages for each in scenario.disturbances)
    assert len(infos) <= KEEP_LAST + 1 + damaged, f"retention left {[info.step for info in infos]}"
    named = {info.directory / attempt_name(info.manifest.attempt) for info in infos if info.manifest is not None}
    unreadable = {info.directory for info in infos if info.manifest is None}
    there = {path for path in _attempt_directories(run.directory) if path.parent not in unreadable}
    assert there == named, f"directories that no manifest names are left: {sorted(map(str, there - named))}"
    torn = [] if isinstance(run.directory, ObjectPath) else list(run.directory.rglob(".*.tmp"))
    assert not torn, f"half-written files are left: {torn}"


def _attempt_directories(run: StoragePath) -> set[StoragePath]:
    """What lies in the directories of checkpoints and is no file."""
    if not isinstance(run, ObjectPath):
        return {path for path in run.glob("checkpoints/*/*") if path.is_dir()}
    place = run / "checkpoints"
    return {place / "/".join(name.split("/")[:2]) for name in list_sizes(place) if name.count("/") > 1}


def _judge_lost_work(run: ChaosRun, scenario: Scenario) -> int:
    """No interruption may cost more than an interval and the save in flight."""
    lost = Counter(row["attempt"] for row in run.discarded if row["kind"] == "train")
    too_much = {attempt: steps for attempt, steps in lost.items() if steps > scenario.lost_steps_allowed}
    assert not too_much, f"steps lost by attempt: {dict(lost)}; allowed: {scenario.lost_steps_allowed}"
    damages = sum(each.damages for each in scenario.disturbances)
    saved: list[int] = []
    for event in run.events:
        if event["event"] == "checkpoint_saved":
            saved = [step for step in saved if step < event["step"]] + [event["step"]]
        elif event["event"] == "resumed" and saved:
            wanted = saved[max(-len(saved), -1 - damages)]
            assert event["from_step"] >= wanted, f"resumed from {event['from_step']} though {saved} were saved"
    return sum(lost.values())


def _attempts(run: ChaosRun) -> int:
    return sum(1 for event in run.events if event["event"] in ("started", "resumed"))


def _first_difference(record: Sequence[dict[str, Any]], undisturbed: Sequence[dict[str, Any]]) -> str:
    for ours, theirs in zip(record, undisturbed, strict=False):
        if ours != theirs:
            return f"the record differs: {ours} instead of {theirs}"
    return f"the record has {len(record)} lines instead of {len(undisturbed)}"
