"""What failures of workers mean and what follows from them: pure functions over plain values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cluster.faults.config import FaultsConfig
from cluster.faults.failure import FailureKind, WorkerFailure

Sentence = Literal["retry", "refit", "end"]
"""What follows a failure: Ray Train replaces the workers on the same terms; the workers are started anew on changed
terms; the run is given up."""

BUDGETS: Mapping[FailureKind, str] = {
    "preemption": "max_preemptions",
    "lost_node": "max_lost_nodes",
    "lost_worker": "max_lost_workers",
    "hang": "max_lost_workers",
    "out_of_memory": "max_out_of_memory",
    "error": "max_errors",
}
"""The field of `FaultsConfig` that bounds each kind."""

_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|\bout of memory\b|can't allocate memory|Cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.I
)
_KILLED_FOR_MEMORY = re.compile(r"running low on memory|due to memory pressure|NODE_OUT_OF_MEMORY|memory monitor", re.I)
"""Ray's words where its memory monitor killed a worker. Its words for any silent death name the kernel's OOM killer as
one of several possible causes, and are no evidence of it."""
_NODE_DIED = re.compile(r"\bits node has died|node (?:was|is) (?:dead|terminated)|NODE_DIED|NodeDiedError", re.I)
_FOLLOWS_ANOTHER = re.compile(
    r"connection (?:was )?(?:reset|closed|refused|aborted)|broken pipe|\bpeer\b|\bgloo\b|\bnccl\b|ProcessGroup|"
    r"Dist(?:Backend|Network|Store|)Error|TCPStore|\bsocket\b|timed out waiting",
    re.I,
)
_ADDRESS = re.compile(r"0x[0-9a-f]+", re.I)
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How Ray saw one rank of a failed group end."""

    rank: int
    error: str
    """Kind of the error and the last line of what it says."""
    text: str
    """All that it says."""
    died: bool
    """Whether the process died, instead of raising an error."""
    preempted: bool = False
    """Whether Ray says that the platform took the node back."""


@dataclass(frozen=True, kw_only=True)
class FailureTally:
    """Failures since the last published checkpoint."""

    counts: Mapping[FailureKind, int] = field(default_factory=dict)
    errors: frozenset[tuple[int, str]] = frozenset()
    """What was raised at which step: the step, and the error without its numbers."""


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """What follows from a failure."""

    decision: Sentence
    reason: str = ""
    """Why the run is given up; empty otherwise."""
    micro_batch_size: int | None = None
    """A smaller one, for all workers from now on; None where it stays."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the workers that failed were started on, as far as a ruling depends on it."""

    micro_batch_size: int
    elastic: bool
    """Whether the run may go on with fewer workers."""
    nodes_changed: bool = False
    """Whether nodes came or went since then: those that came may not be fit for the run."""


def kind_of_error(error: BaseException) -> FailureKind:
    """Whether an error that a worker raised, or one that led to it, says that memory ran out."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or _OUT_OF_MEMORY.search(f"{type(cause).__name__}: {cause}"):
            return "out_of_memory"
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "error"


def describe_error(error: BaseException) -> str:
    """The kind of an error and the last line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def classify(ending: Ending, *, node_alive: bool, node_draining: bool) -> FailureKind:
    """Name the cause of a rank's end from what Ray says and how its node stands.

    Args:
        ending: As Ray saw it.
        node_alive: Whether the node that the rank ran on still answers.
        node_draining: Whether the platform has announced that it takes that node back.
    """
    if not ending.died:
        return "out_of_memory" if _OUT_OF_MEMORY.search(ending.text) else "error"
    if ending.preempted or node_draining:
        return "preemption"
    if not node_alive or _NODE_DIED.search(ending.text):
        return "lost_node"
    if _KILLED_FOR_MEMORY.search(ending.text) or "OutOfMemoryError" in ending.error:
        return "out_of_memory"
    return "lost_worker"


def follows_another(failure: WorkerFailure) -> bool:
    """Whether an error only says that another rank is gone: connections that broke, collectives that were given up."""
    return failure.kind == "error" and _FOLLOWS_ANOTHER.search(failure.error) is not None


def root_cause(failures: Iterable[WorkerFailure]) -> WorkerFailure:
    """The failure that the others followed from.

    An end from outside comes before an error, because an error of one rank ends no other's process; an error that only
    says that another rank is gone comes last. Among equals it is the earliest. A hang comes before all: it was found
    with every rank in view, and what ended others then was its remedy.
    """
    return min(failures, key=lambda each: (_derived(each), each.time_unix_seconds, each.rank))


def _derived(failure: WorkerFailure) -> int:
    if failure.kind == "hang":
        return 0
    return 3 if follows_another(failure) else 2 if failure.kind == "error" else 1


def rule(
    tally: FailureTally, faults: FaultsConfig, terms: Terms, cause: WorkerFailure, *, fatal: str | None = None
) -> tuple[Ruling, FailureTally]:
    """Decide what follows a failure of the workers.

    Args:
        tally: Failures before it.
        faults: Budgets.
        terms: What the workers were started on.
        cause: The root cause.
        fatal: Why a retry would be in vain, where the worker knows; ends the run.

    Returns:
        What follows, and the tally with this failure.
    """
    kind = cause.kind
    if fatal is not None:
        return Ruling(decision="end", reason=fatal), tally
    signature = _signature(cause)
    repeated = signature is not None and signature in tally.errors
    counts = Counter(tally.counts)
    counts[kind] += 1
    after = FailureTally(counts=dict(counts), errors=tally.errors | ({signature} if signature else set()))
    halves = faults.on_oom == "halve_micro_batch" and cause.step is not None  # before a step no micro-batch is held
    if kind == "out_of_memory" and halves and terms.micro_batch_size > 1:
        smaller = terms.micro_batch_size // 2
        return Ruling(decision="refit", micro_batch_size=smaller), tally  # other terms: nothing counts against them
    budget = getattr(faults, BUDGETS[kind])
    if repeated:
        return Ruling(decision="end", reason=_told(_twice(cause), cause, terms)), after
    if 0 <= budget < counts[kind]:
        return Ruling(decision="end", reason=_told(_exhausted(kind, counts[kind], budget), cause, terms)), after
    anew = kind == "hang" or (terms.elastic and (terms.nodes_changed or kind in ("preemption", "lost_node")))
    return Ruling(decision="refit" if anew else "retry"), after


def place_of(failure: WorkerFailure) -> str:
    """Rank, node and step of a failure in words."""
    step = "" if failure.step is None else f", step {failure.step}"
    return f"rank {failure.rank} on node {failure.node}{step}"


def causes_by_rank(failures: Sequence[WorkerFailure]) -> dict[str, str]:
    """What each rank's end was, the root cause first."""
    first = root_cause(failures)
    ordered = [first, *(each for each in sorted(failures, key=lambda each: each.rank) if each is not first)]
    return {str(each.rank): each.error for each in ordered}


def _signature(cause: WorkerFailure) -> tuple[int, str] | None:
    """What makes an error the same error when it comes again; None for what has causes outside the program.

    Memory that ran out is no such error: others may have held it, and its budget alone says how often to try.
    """
    if cause.step is None or cause.kind != "error" or follows_another(cause):
        return None
    return cause.step, _NUMBER.sub("#", _ADDRESS.sub("#", cause.error))


def _twice(cause: WorkerFailure) -> str:
    return f"step {cause.step} failed twice with the same error: another trial would meet it again."


def _exhausted(kind: FailureKind, count: int, budget: int) -> str:
    name = kind.replace("_", " ")
    times = "once" if count == 1 else f"{count} times"
    return f"workers ended by {name} {times} without a new checkpoint, and faults.{BUDGETS[kind]} is {budget}."


def _told(what: str, cause: WorkerFailure, terms: Terms) -> str:
    parts = [what, f"{place_of(cause)}: {cause.error}"]
    if cause.kind == "out_of_memory":
        parts.append(_less_memory(terms.micro_batch_size, started=cause.step is not None))
    parts.append("Checkpoints up to the last saved one are whole; the same command continues from there.")
    return "\n".join(parts)


def _less_memory(micro_batch: int, *, started: bool) -> str:
    if micro_batch == 1 or not started:
        why = "The micro-batch is 1 already" if started else "That was before the first step, whatever the micro-batch"
        return (
            f"{why}. Less memory is needed with train.activation_checkpointing=full, a higher "
            "zero.stage, zero.offload_optimizer=cpu on GPUs, or more workers."
        )
    return (
        f"It ran with a micro-batch of {micro_batch}: train.micro_batch_size={micro_batch // 2} needs less memory and "
        "trains the same global batch, and faults.on_oom=halve_micro_batch does so by itself."
    )
