"""postmortem.md: one page on how a run ended, written from its record, whatever state that is in."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.errors import ClusterError
from cluster.faults.failure import FailureKind, WorkerFailure
from cluster.record.goodput import creation, goodput_line, measure_goodput
from cluster.record.logs import DISCARDED_NAME, EVENTS_NAME, METRICS_NAME, read_lines
from cluster.record.markdown import block, inert, table
from cluster.record.run_data import open_data
from cluster.run_directory import CONFIG_NAME, RunDirectory
from cluster.storage.operations import StoragePath, write_atomically
from data_pipeline.errors import DataError
from data_pipeline.skip_ledger import SkipLedger
from data_pipeline.trace import TracedPart, TracedSequence, excerpt, trace_sequences

if TYPE_CHECKING:  # the page needs no torch
    from cluster.checkpoint import CheckpointInfo

logger = logging.getLogger(__name__)

POST_MORTEM_NAME = "postmortem.md"
Status = Literal["failed", "stopped", "finished"]

_TROUBLE = (
    *(OSError, ClusterError, DataError),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),  # JSON of another shape
)
"""What reading a record that was damaged or edited can raise: the page then says so in the section's place."""
_TRACEBACK_LINES = 40
_OTHER_RANKS = 16
_DOCUMENTS = 12
_EXCERPT_TOKENS = 16
_EVENTS = 30
_LAST_SECONDS = 3600.0
_SAVED = "checkpoint_saved"
_LONGEST_REASON = 600  # characters

_NEXT: dict[FailureKind, str] = {
    "preemption": "The platform took the node back; nothing is wrong with the run. Continue it when there are nodes; "
    "`resources.workers: [least, most]` lets it go on with fewer.",
    "lost_node": "The node vanished without notice. Look into its system log and its network before it is used again; "
    "the run continues on any other nodes.",
    "lost_worker": "The process was killed from outside while its node lived. Most often that is the kernel freeing "
    "memory: look for `oom` in the node's kernel log (`dmesg`) and lower `train.micro_batch_size` or give the worker "
    "more memory. Else find who sent the signal.",
    "out_of_memory": "Lower `train.micro_batch_size`: the global batch and the curve stay the same. "
    "`faults.on_oom: halve_micro_batch` does so by itself; a higher `zero.stage` or more workers make each one's share "
    "of the state smaller.",
    "hang": "The rank stood still. Its stack above says where; look into that node's network and device before it is "
    "used again. A step that is only slow needs a longer `faults.hang_timeout_seconds`.",
    "error": "The program raised an error: where the traceback ends in code or data of yours, mend that first. If the "
    "same step fails again, look at the documents above.",
}


class _Record:
    """What a run's directory says, each part read once, when a section first asks for it."""

    def __init__(self, directory: StoragePath) -> None:
        self.directory = directory

    @cached_property
    def facts(self) -> dict[str, Any]:
        """run.json."""
        return RunDirectory(self.directory).facts(patient=False)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Train lines of metrics.jsonl."""
        return [row for row in read_lines(self.directory / METRICS_NAME) if row.get("kind") == "train"]

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Lines of events.jsonl."""
        return read_lines(self.directory / EVENTS_NAME)


def write_post_mortem(
    run_directory: StoragePath, *, status: Status, reason: str | None, failures: Sequence[WorkerFailure]
) -> StoragePath:
    """Write postmortem.md into the run's directory, whole or not at all. Raises nothing: the run's own end comes first.

    Args:
        run_directory: STORAGE/NAME.
        status: How the command ended.
        reason: Of a failure, or why the run stopped; None where there is nothing to say.
        failures: What is known of workers that failed in the course of the command, in any order.

    Returns:
        The file; it is as it was before where the storage does not take it, which is logged.
    """
    path = run_directory / POST_MORTEM_NAME
    told = sorted(failures, key=lambda one: one.time_unix_seconds)
    page = "\n\n".join(_page(_Record(run_directory), status, reason, told))
    try:
        write_atomically(path, page.encode(errors="replace") + b"\n")
    except OSError as error:
        logger.warning("%s could not be written: %s", path, error.strerror or error)
    return path


def _page(record: _Record, status: Status, reason: str | None, failures: Sequence[WorkerFailure]) -> list[str]:
    first, others = next(iter(failures), None), failures[1:]
    parts = [f"# Post-mortem of {inert(record.directory.name)}: {status}"]
    parts += _section("", lambda: _outcome(record, status, reason))
    if first is not None:
        parts += _section("First failure", lambda: _failure(first))
        parts += _section("Other ranks", lambda: _others(first, others))
        parts += _section("Documents of its batch", lambda: _documents(record, first))
    parts += _section("What was saved", lambda: _saved(record, first))
    parts += _section("Time", lambda: _time(record))
    parts += _section("What to do next", lambda: _next(record, status, first))
    return parts + _section("Events of the last hour", lambda: _events(record.events))


def _section(title: str, body: Callable[[], str]) -> list[str]:
    """A section, left out where it is empty; where the record does not allow it, it says so."""
    try:
        text = body()
    except _TROUBLE as error:
        text = f"This could not be told: {inert(f'{type(error).__name__}: {error}', _LONGEST_REASON)}"
    return [*([f"## {title}"] if title else []), text] if text else []


def _outcome(record: _Record, status: Status, reason: str | None) -> str:
    last = f" The last logged step is {record.steps[-1]['step']:,}." if record.steps else " No step was logged."
    when = f" at {_moment(record.events[-1]['time_unix_seconds'])}" if record.events else ""
    attempts = record.facts.get("attempt", "n/a")
    told = f"\n\nReason: {inert(reason, _LONGEST_REASON)}" if reason else ""
    return f"The run {status}{when}, in attempt {inert(attempts)}.{last}{told}"


def _failure(failure: WorkerFailure) -> str:
    facts = [
        ("rank", str(failure.rank)),
        ("node", inert(failure.node)),
        ("process", "n/a" if failure.pid is None else str(failure.pid)),
        ("kind", failure.kind.replace("_", " ")),
        ("step", "before the first" if failure.step is None else f"{failure.step:,}"),
        ("time", _moment(failure.time_unix_seconds)),
        ("error", inert(failure.error, _LONGEST_REASON) or "it could not say anything any more"),
    ]
    trace = f"\n\n{block(failure.traceback, _TRACEBACK_LINES)}" if failure.traceback.strip() else ""
    return table(("Worker", ""), facts) + trace


def _others(first: WorkerFailure, others: Sequence[WorkerFailure]) -> str:
    lines = [
        f"* rank {one.rank} on {inert(one.node)}, {one.time_unix_seconds - first.time_unix_seconds:.1f} s later, "
        f"{one.kind.replace('_', ' ')}: {inert(one.error) or 'said nothing'}"
        for one in others[:_OTHER_RANKS]
    ]
    left_out = len(others) - len(lines)
    return "\n".join([*lines, *([f"* and {left_out:,} more"] if left_out else [])])


def _documents(record: _Record, failure: WorkerFailure) -> str:
    if not failure.sequences:
        return ""
    traced = trace_sequences(open_data(record.facts), failure.sequences)
    parts = [(one, part) for one in traced for part in one.parts]
    head = ("Sequence", "Dataset", "Document", "Source", "From its token", "Tokens", "It reads")
    rows = [_document_cells(one, part) for one, part in parts[:_DOCUMENTS]]
    left_out = len(parts) - len(rows)
    more = f"\n\n{left_out:,} more stretches of its {len(traced):,} sequences are left out here." if left_out else ""
    return table(head, rows) + more


def _document_cells(sequence: TracedSequence, part: TracedPart) -> list[str]:
    document = part.document
    return [
        f"{sequence.index:,}",
        inert(sequence.dataset.name),
        inert(document.document_id),
        inert(document.source),
        f"{part.first_token:,} of {document.stop - document.start:,}",
        f"{part.tokens:,}",
        inert(excerpt(sequence.dataset, part, _EXCERPT_TOKENS), 80),
    ]


def _saved(record: _Record, failure: WorkerFailure | None) -> str:
    found = _checkpoints(record.directory)
    steps = [info.step for info in found if info.problem is None]
    if not found:
        return "No checkpoint: the run begins anew."
    rejected = [info.step for info in found if info.rejection is not None]
    refused = f" Rejected, with the reason in their REJECTED.json: {_steps(rejected)}." if rejected else ""
    for info in found:
        if info.problem is not None and info.rejection is None:
            refused += f" That of step {info.step:,} cannot be used: {inert(info.problem, _LONGEST_REASON)}"
    if not steps:
        return f"No usable checkpoint.{refused}"
    begun = [failure.step - 1] if failure is not None and failure.step is not None else []
    lost = max([*(row["step"] for row in record.steps[-1:]), *begun, steps[-1]]) - steps[-1]
    after = f"; {lost:,} steps after it are to be made again" if lost else "; nothing after it was lost"
    return f"The newest checkpoint is of step {steps[-1]:,}{after}. There are those of {_steps(steps)}.{refused}"


def _checkpoints(run_directory: StoragePath) -> list[CheckpointInfo]:
    """Published checkpoints, oldest first. Their tensors are not read here: a resume verifies them."""
    from cluster.checkpoint import list_checkpoints

    return list_checkpoints(run_directory)


def _steps(steps: Sequence[int]) -> str:
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(f'{step:,}' for step in steps)}"


def _time(record: _Record) -> str:
    discarded = read_lines(record.directory / DISCARDED_NAME)
    created = creation(record.facts)
    return goodput_line(measure_goodput(record.steps, discarded, record.events, created_unix_seconds=created))


def _next(record: _Record, status: Status, failure: WorkerFailure | None) -> str:
    if status == "finished":
        return ""
    advice = _NEXT[failure.kind] if failure is not None and status == "failed" else ""
    config = record.directory / CONFIG_NAME
    if not config.exists():
        return f"{advice} Give the same command again: {CONFIG_NAME} of the run is gone.".strip()
    task = record.facts.get("task", "pretrain")
    verb = "pretrain" if task == "pretrain" else "finetune"
    parts = [advice, *_without_its_sequences(record, failure if status == "failed" else None)]
    command = block(f"longhaul {verb} {shlex.quote(str(_from_root(config)))}", 1)
    return "\n\n".join([*parts, "To continue from the newest checkpoint:", command]).strip()


def _without_its_sequences(record: _Record, failure: WorkerFailure | None) -> list[str]:
    """How to go on without what an error was raised on: a run that has a checkpoint does so as a branch of itself."""
    usable = [info.step for info in _checkpoints(record.directory) if info.problem is None]
    if failure is None or failure.kind != "error" or not failure.sequences or not usable:
        return []
    skips = SkipLedger()
    for sequence in failure.sequences:
        skips = skips.add(sequence, sequence + 1)
    run = _from_root(record.directory)
    name, left_out = f"{run.name}-without", json.dumps(skips.to_json(), separators=(",", ":"))
    words = ["longhaul", "branch", str(run), "--from", str(usable[-1]), name, f"healing.skip_sequences={left_out}"]
    return ["To go on without its sequences, in a branch of the run:", block(shlex.join(words), 1)]


def _from_root(path: StoragePath) -> StoragePath:
    return path.resolve() if isinstance(path, Path) else path


def _events(events: Sequence[Mapping[str, Any]]) -> str:
    newest = max((event["time_unix_seconds"] for event in events), default=0.0)
    recent = [event for event in events if event["time_unix_seconds"] >= newest - _LAST_SECONDS]
    groups = [list(group) for _, group in groupby(recent, key=_routine)]
    rows = [_event_cells(group) for group in groups[-_EVENTS:]]
    left_out = len(groups) - len(rows)
    more = f"\n\n{left_out:,} earlier rows are left out here; {EVENTS_NAME} has them all." if left_out else ""
    return table(("Time", "Event", "Step", "Attempt", "Details"), rows) + more if rows else ""


def _routine(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same for neighbours that share a row: checkpoints saved one after the other."""
    routine = event.get("event") == _SAVED
    return (routine, event.get("attempt")) if routine else (routine, id(event))


def _event_cells(group: Sequence[Mapping[str, Any]]) -> list[str]:
    last = group[-1]
    known = ("event", "time_unix_seconds", "step", "attempt", "layout")
    told = {key: value for key, value in last.items() if key not in known and not key.startswith("time/") and value}
    details = [f"{key.replace('_', ' ')} {_plain(value)}" for key, value in told.items()]
    steps = dict.fromkeys(str(event["step"]) for event in (group[0], last) if event.get("step") is not None)
    times = f" × {len(group):,}, the last" if len(group) > 1 else ""
    return [
        _moment(last["time_unix_seconds"]),
        f"{inert(last.get('event'))}{times}",
        inert(" to ".join(steps)),
        inert(last.get("attempt", "")),
        inert(", ".join(details)),
    ]


def _plain(value: Any) -> str:
    return "; ".join(f"{key}: {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)


def _moment(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
