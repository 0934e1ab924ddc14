"""What a worker had in work when it failed, for whoever has to find out why."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass

from cluster.batches import PADDING, RankBatch
from cluster.faults.failure import WorkerFailure
from cluster.faults.inquest import Seat
from cluster.faults.rules import describe_error, kind_of_error


@dataclass
class WorkInHand:
    """The part of the newest batch that a rank computes."""

    step: int | None = None
    sequences: tuple[int, ...] = ()
    """Logical sequence indices."""

    def take(self, batch: RankBatch) -> None:
        """Remember a batch before it is computed."""
        self.step = batch.step
        self.sequences = tuple(int(index) for index in batch.sample_index.ravel() if index != PADDING)


def failure_of(error: Exception, seat: Seat, work: WorkInHand) -> WorkerFailure:
    """An error of this process, as the driver and the post-mortem get to know it."""
    return WorkerFailure(
        rank=seat.rank,
        node=seat.node,
        pid=seat.pid,
        kind=kind_of_error(error),
        step=work.step,
        error=describe_error(error),
        traceback="".join(traceback.format_exception(error)),
        time_unix_seconds=time.time(),
        sequences=work.sequences,
    )
