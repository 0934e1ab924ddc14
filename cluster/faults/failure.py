"""What is known of a worker that failed: a plain record that workers send, drivers judge and post-mortems tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FailureKind = Literal["preemption", "lost_node", "lost_worker", "out_of_memory", "hang", "error"]
"""Why a worker ended, each with a budget of its own: the platform took its node back with notice; its node vanished;
its process was killed; memory of the GPU or host ran out; it stood still; its program raised an error."""


@dataclass(frozen=True, kw_only=True)
class WorkerFailure:
    """One rank's end. Failures of one moment are told apart by their time: the first one is the likely cause."""

    rank: int
    node: str
    """Address of the node."""
    pid: int | None
    kind: FailureKind
    step: int | None
    """Step in work; None before the first."""
    error: str
    """Kind of the error and its last line."""
    traceback: str
    """Of the worker, empty where it could not say anything any more."""
    time_unix_seconds: float
    sequences: tuple[int, ...] = ()
    """Logical indices of the sequences that the rank had in work."""
