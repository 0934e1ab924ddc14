"""Which row of which source is sequence i: a pure function, with seeking in constant time.

The order is divided into segments (see `data_pipeline.segments`), which say from which source a sequence comes.
Arithmetic gives the *ordinal*, the number of rows taken from that source before; epoch and row follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.config import StageConfig
from data_pipeline.errors import OrderError
from data_pipeline.permutation import derive_key, permute
from data_pipeline.segments import PERIOD, Int64Array, SourceRows, build_segments, quotas_of

__all__ = ["PERIOD", "SequenceOrder", "Shuffle", "SourceRows", "quotas_of", "shuffled_rows"]


@dataclass(frozen=True)
class Shuffle:
    """How far apart on disk two neighbours in the order may come from."""

    block_sequences: int = 1024
    """Rows of one block."""
    window_blocks: int | None = None
    """Blocks whose rows are mixed; None mixes all rows."""


class SequenceOrder:
    """The order of all training sequences.

    Args:
        sources: The sources, in their order.
        stages: Mixtures of the first stretches; after them the sources' own weights hold.
        seed: Keys every permutation.
        shuffle: Locality of the rows' order.
    """

    def __init__(
        self,
        sources: Sequence[SourceRows],
        *,
        seed: int,
        stages: Sequence[StageConfig] = (),
        shuffle: Shuffle | None = None,
    ) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        self.shuffle = shuffle or Shuffle()
        self.segments = build_segments(self.sources, stages, seed)
        self._starts = np.array([segment.start for segment in self.segments], dtype=np.int64)
        last = self.segments[-1]
        self.total_sequences: int | None = None if last.length is None else last.start + last.length
        """Sequences until every source is exhausted; None is without end."""

    def locate(self, logical: npt.ArrayLike) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Finds sequences.

        Args:
            logical: Logical indices. Shape: (B,).

        Returns:
            Source, row within it and epoch of each. Shape: (B,) each, int64.
        """
        wanted = np.asarray(logical, dtype=np.int64)
        source, ordinal = self.ordinals(wanted)
        rows = np.array([item.rows for item in self.sources], dtype=np.int64)[source]
        epoch, position = np.divmod(ordinal, rows)
        row = np.empty_like(position)
        for number in np.unique(source):
            mine = source == number
            row[mine] = self._rows(self.sources[number], position[mine], epoch[mine])
        return source, row, epoch

    def ordinals(self, logical: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Returns each sequence's source and its ordinal among that source's rows. Shape: (B,) each."""
        self._check(logical)
        which = np.searchsorted(self._starts, logical, side="right") - 1
        source, ordinal = np.empty_like(logical), np.empty_like(logical)
        for number in np.unique(which):
            mine = which == number
            segment = self.segments[number]
            periods, place = np.divmod(logical[mine] - segment.start, PERIOD)
            chosen = segment.source_of[place]
            source[mine] = chosen
            ordinal[mine] = segment.first_ordinals[chosen] + periods * segment.quotas[chosen] + segment.rank_of[place]
        return source, ordinal

    def consumed(self, position: int) -> Int64Array:
        """Returns how many rows each source has given before logical index `position`. Shape: (sources,)."""
        if self.total_sequences is not None:
            position = min(position, self.total_sequences)
        segment = self.segments[int(np.searchsorted(self._starts, position, side="right")) - 1]
        return segment.consumed(position - segment.start)

    def rows_at(self, source: int, ordinals: Int64Array) -> Int64Array:
        """Returns the rows of a source at ordinals. Shape: (B,)."""
        epoch, position = np.divmod(ordinals, self.sources[source].rows)
        return self._rows(self.sources[source], position, epoch)

    def _rows(self, source: SourceRows, position: Int64Array, epoch: Int64Array) -> Int64Array:
        row = np.empty_like(position)
        for number in np.unique(epoch).tolist():
            mine = epoch == number
            row[mine] = shuffled_rows(position[mine], source.rows, self.shuffle, (self.seed, source.key, number))
        return row

    def _check(self, logical: Int64Array) -> None:
        if logical.size == 0:
            return
        first, last = int(logical.min()), int(logical.max())
        if first < 0 or (self.total_sequences is not None and last >= self.total_sequences):
            raise OrderError(
                f"Sequence {first if first < 0 else last} was asked for, but the data ends after "
                f"{self.total_sequences} sequences. Train fewer steps, or raise max_epochs of a dataset."
            )


def shuffled_rows(positions: Int64Array, rows: int, shuffle: Shuffle, key: tuple[int, str, int]) -> Int64Array:
    """Permutes one epoch of a source: all rows at once, or blocks, and then rows within windows of blocks.

    Args:
        positions: Places in the epoch. Shape: (B,).
        rows: Rows of the source.
        shuffle: Sizes of block and window.
        key: Seed, key of the source, epoch.

    Returns:
        Rows. Shape: (B,).
    """
    seed, name, epoch = key
    if shuffle.window_blocks is None:
        return permute(positions, rows, derive_key(seed, "rows", name, epoch))
    # The last block may be partial: permute whole blocks, and send what falls behind the end through again.
    result = _two_level(positions, rows, shuffle, key)
    outside = result >= rows
    while outside.any():
        result[outside] = _two_level(result[outside], rows, shuffle, key)
        outside = result >= rows
    return result


def _two_level(positions: Int64Array, rows: int, shuffle: Shuffle, key: tuple[int, str, int]) -> Int64Array:
    seed, name, epoch = key
    size = shuffle.block_sequences
    blocks = -(-rows // size)
    window_rows = min(shuffle.window_blocks or blocks, blocks) * size
    windows, inner = np.divmod(positions, window_rows)
    mixed = np.empty_like(positions)
    for window in np.unique(windows).tolist():
        mine = windows == window
        length = min(window_rows, blocks * size - window * window_rows)
        mixed[mine] = window * window_rows + permute(
            inner[mine], length, derive_key(seed, "window", name, epoch, window)
        )
    slots, within = np.divmod(mixed, size)
    return permute(slots, blocks, derive_key(seed, "blocks", name, epoch)) * size + within
