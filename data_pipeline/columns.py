"""One column of a split, a value for every token, over the record batches of its memory-mapped shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.manifest import SegmentRecord
from data_pipeline.publish import BLOCK_BYTES
from data_pipeline.shards import MappedShard

Int64Array = npt.NDArray[np.int64]


class Blocks:
    """Which blocks of a split's shards were compared with their hashes, as one bitmap for all of them.

    So a batch of rows is checked by one look-up. The shards mark in it what they have verified.

    Args:
        shards: Of the split, in order.
    """

    def __init__(self, shards: Sequence[MappedShard]) -> None:
        self.verified = np.zeros(sum(len(shard.record.blocks) for shard in shards), dtype=bool)
        self.first_block: dict[str, int] = {}
        """Where the blocks of each shard begin, by its file."""
        base = 0
        for shard in shards:
            shard.verified = self.verified[base : base + len(shard.record.blocks)]
            self.first_block[shard.record.file] = base
            base += len(shard.record.blocks)


class Column:
    """A value for every token; nothing is loaded, and no byte is used before its block was verified.

    Args:
        segments: Record batches with their shards, in order.
        positions: Byte in its shard at which the values of each record batch begin.
        dtype: Of the values.
        starts: Stream position at which each record batch begins, and the stream's end. Shape: (segments + 1,).
        blocks: Of the same shards.
    """

    def __init__(
        self,
        segments: Sequence[tuple[MappedShard, SegmentRecord]],
        positions: Sequence[int],
        dtype: np.dtype[Any],
        starts: Int64Array,
        blocks: Blocks,
    ) -> None:
        self.dtype = dtype
        self._segments = segments
        self._positions = positions
        self._starts = starts
        self._verified = blocks.verified
        self._views: list[npt.NDArray[Any] | None] = [None] * len(segments)
        self._byte_bases = np.array(
            [
                blocks.first_block[shard.record.file] * BLOCK_BYTES + position
                for (shard, _), position in zip(segments, positions, strict=True)
            ],
            dtype=np.int64,
        )

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Returns a copy of the values at stream positions [start, stop), which lie within the stream.

        Raises:
            DatasetDamagedError: A block under them is not what it was.
        """
        result = np.empty(stop - start, dtype=self.dtype)
        segment = int(np.searchsorted(self._starts, start, side="right")) - 1
        position = start
        while position < stop:
            begin, end = int(self._starts[segment]), int(self._starts[segment + 1])
            until = min(end, stop)
            self._verify(segment, position - begin, until - begin)
            result[position - start : until - start] = self._view(segment)[position - begin : until - begin]
            position, segment = until, segment + 1
        return result

    def rows(self, starts: Int64Array, length: int) -> npt.NDArray[Any]:
        """Returns many stretches of equal length, all within the stream.

        Args:
            starts: Stream positions. Shape: (B,), B at least 1.
            length: Values of each.

        Returns:
            Values. Shape: (B, length).
        """
        segments = np.searchsorted(self._starts, starts, side="right") - 1
        offsets = starts - self._starts[segments]
        inside = starts + length <= self._starts[segments + 1]
        self._verify_rows(segments, offsets, np.minimum(length, self._starts[segments + 1] - starts))
        result = np.empty((len(starts), length), dtype=self.dtype)
        for row, (segment, offset) in enumerate(zip(segments.tolist(), offsets.tolist(), strict=True)):
            result[row] = (
                self._view(segment)[offset : offset + length]
                if inside[row]
                else self.read(int(starts[row]), int(starts[row]) + length)
            )
        return result

    def _view(self, segment: int) -> npt.NDArray[Any]:
        view = self._views[segment]
        if view is None:
            shard, record = self._segments[segment]
            view = self._views[segment] = shard.values(self._positions[segment], record.tokens, self.dtype)
        return view

    def _verify(self, segment: int, start: int, stop: int) -> None:
        shard, _ = self._segments[segment]
        position, width = self._positions[segment], self.dtype.itemsize
        shard.verify(position + start * width, position + stop * width)

    def _verify_rows(self, segments: Int64Array, offsets: Int64Array, lengths: Int64Array) -> None:
        width = self.dtype.itemsize
        bytes_ = self._byte_bases[segments] + offsets * width
        first, last = bytes_ // BLOCK_BYTES, (bytes_ + lengths * width - 1) // BLOCK_BYTES
        clean = self._verified[first] & self._verified[last] & (last - first <= 1)
        for row in np.flatnonzero(~clean).tolist():
            self._verify(int(segments[row]), int(offsets[row]), int(offsets[row] + lengths[row]))
