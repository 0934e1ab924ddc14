"""The sequences that healing left out: a sorted list of intervals of logical indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import OrderError

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SkipLedger:
    """Immutable set of skipped logical indices.

    The j-th *ordinal* is the j-th sequence that is not skipped; its *logical* index is its place in the
    order.
    """

    intervals: tuple[tuple[int, int], ...] = ()
    """Half-open, sorted, disjoint, not touching."""

    def __post_init__(self) -> None:
        last = -1
        for start, stop in self.intervals:
            if not (start > last and start < stop and start >= 0):
                raise OrderError(
                    f"Skip ledger holds the interval [{start}, {stop}) after index {last}: intervals are "
                    "non-empty, "
                    "sorted and apart from each other. Build a ledger through `add`."
                )
            last = stop

    def add(self, start: int, stop: int) -> SkipLedger:
        """Returns a ledger that also skips the logical indices from `start` to before `stop`."""
        if not 0 <= start < stop:
            raise OrderError(
                f"Cannot skip the interval [{start}, {stop}): it must begin at 0 or later and hold an index."
            )
        before = tuple(pair for pair in self.intervals if pair[1] < start)
        after = tuple(pair for pair in self.intervals if pair[0] > stop)
        merged = self.intervals[len(before) : len(self.intervals) - len(after)]
        if merged:
            start, stop = min(start, merged[0][0]), max(stop, merged[-1][1])
        return SkipLedger((*before, (start, stop), *after))

    def logical(self, ordinals: npt.ArrayLike) -> Int64Array:
        """Maps ordinals of sequences that are not skipped to logical indices.

        Args:
            ordinals: Any shape, counted from 0.

        Returns:
            Logical indices, same shape, int64.
        """
        wanted = np.asarray(ordinals, dtype=np.int64)
        passed = np.searchsorted(self._kept_before, wanted, side="right")
        result: Int64Array = wanted + self._skipped_through[passed]
        return result

    def position_after(self, count: int) -> int:
        """Returns the logical index that is read next when `count` sequences have been consumed."""
        return int(self.logical(np.array([count]))[0])

    def skipped_before(self, position: int) -> int:
        """Returns how many indices below `position` are skipped."""
        return sum(min(stop, position) - start for start, stop in self.intervals if start < position)

    def to_json(self) -> list[list[int]]:
        """Returns the intervals as JSON lists."""
        return [[start, stop] for start, stop in self.intervals]

    @classmethod
    def from_json(cls, value: Sequence[Sequence[int]]) -> SkipLedger:
        """Reads what `to_json` gave."""
        return cls(tuple((int(start), int(stop)) for start, stop in value))

    @cached_property
    def _skipped_through(self) -> Int64Array:
        """Indices skipped by the first k intervals, for k from 0."""
        return np.cumsum([0, *(stop - start for start, stop in self.intervals)], dtype=np.int64)

    @cached_property
    def _kept_before(self) -> Int64Array:
        """Ordinals that lie before each interval."""
        starts = np.array([start for start, _ in self.intervals], dtype=np.int64)
        return starts - self._skipped_through[:-1]
