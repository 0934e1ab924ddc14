"""One split of a dataset as a single stream of tokens over its memory-mapped shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DatasetError
from data_pipeline.manifest import Manifest
from data_pipeline.publish import BLOCK_BYTES
from data_pipeline.shards import MappedShard

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DocumentPlace:
    """A document and where it lies in the stream."""

    index: int
    """Number within the split."""
    document_id: str
    source: str
    file: str
    """Shard file, relative to the dataset."""
    start: int
    """Stream position of its BOS."""
    stop: int
    """Stream position after its EOS."""


class TokenStream:
    """All documents of a split, one after the other: [BOS] text [EOS] [BOS] text [EOS] ...

    Nothing is loaded: a position is found by binary search over the record batches (segments), then in one.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: str) -> None:
        records = [record for record in manifest.shards if record.split == split]
        self.split = split
        self.bos_id = manifest.bos_id
        self.dtype: np.dtype[Any] = np.dtype(manifest.token_dtype)
        self.tokens = manifest.splits[split].tokens
        """Length of the stream."""
        self.documents = manifest.splits[split].documents
        """Documents in the stream."""
        self.shards = [MappedShard(directory, record, self.dtype) for record in records]
        # One bitmap for all shards, so that a batch of rows is checked by one look-up.
        self._verified = np.zeros(sum(len(record.blocks) for record in records), dtype=bool)
        self._segments = [(shard, segment) for shard in self.shards for segment in shard.record.segments]
        self._views: list[npt.NDArray[Any] | None] = [None] * len(self._segments)
        self._starts = np.cumsum([0, *(s.tokens for _, s in self._segments)], dtype=np.int64)
        self._first_documents = np.cumsum([0, *(s.documents for _, s in self._segments)], dtype=np.int64)
        base, bases = 0, []
        for shard in self.shards:
            shard.verified = self._verified[base : base + len(shard.record.blocks)]
            bases += [base * BLOCK_BYTES + segment.tokens_position for segment in shard.record.segments]
            base += len(shard.record.blocks)
        self._byte_bases = np.array(bases, dtype=np.int64)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Returns a copy of the tokens at stream positions [start, stop).

        Raises:
            DatasetDamagedError: A block under them is not what it was.
        """
        self._check(start, stop)
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
        """Returns many stretches of equal length.

        Args:
            starts: Stream positions. Shape: (B,).
            length: Tokens of each.

        Returns:
            Tokens. Shape: (B, length).
        """
        if len(starts) == 0:
            return np.empty((0, length), dtype=self.dtype)
        self._check(int(starts.min()), int(starts.max()) + length)
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

    def document_starts(self, start: int, stop: int) -> Int64Array:
        """Returns the stream positions in [start, stop) at which documents begin."""
        self._check(start, stop)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        for number in range(first, len(self._segments)):
            begin = int(self._starts[number])
            if begin >= stop:
                break
            shard, segment = self._segments[number]
            offsets = shard.offsets(segment)[:-1]
            low, high = np.searchsorted(offsets, [start - begin, stop - begin])
            parts.append(offsets[low:high] + begin)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def document_lengths(self) -> Int64Array:
        """Returns the length in tokens of every document, in order. Shape: (documents,)."""
        lengths = [np.diff(shard.offsets(segment)) for shard, segment in self._segments]
        return np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64)

    def document_sources(self) -> list[str]:
        """Returns the name of the source of every document, in order."""
        columns = (shard.names(number)[1] for shard in self.shards for number in range(len(shard.record.segments)))
        return [source for column in columns for source in column.to_pylist()]

    def documents_at(self, positions: npt.ArrayLike) -> list[DocumentPlace]:
        """Returns the document that each stream position belongs to."""
        places = []
        for position in np.asarray(positions, dtype=np.int64).ravel().tolist():
            self._check(position, position + 1)
            number = int(np.searchsorted(self._starts, position, side="right")) - 1
            shard, segment = self._segments[number]
            offsets, begin = shard.offsets(segment), int(self._starts[number])
            row = int(np.searchsorted(offsets, position - begin, side="right")) - 1
            ids, sources = shard.names(shard.record.segments.index(segment))
            places.append(
                DocumentPlace(
                    index=int(self._first_documents[number]) + row,
                    document_id=ids[row].as_py(),
                    source=sources[row].as_py(),
                    file=shard.record.file,
                    start=begin + int(offsets[row]),
                    stop=begin + int(offsets[row + 1]),
                )
            )
        return places

    def document(self, index: int) -> DocumentPlace:
        """Returns document number `index` of the split."""
        if not 0 <= index < self.documents:
            raise DatasetError(
                f"The {self.split} split has documents 0 to {self.documents - 1}; {index} is none of them."
            )
        number = int(np.searchsorted(self._first_documents, index, side="right")) - 1
        shard, segment = self._segments[number]
        row = index - int(self._first_documents[number])
        return self.documents_at([int(self._starts[number]) + int(shard.offsets(segment)[row])])[0]

    def _view(self, segment: int) -> npt.NDArray[Any]:
        view = self._views[segment]
        if view is None:
            shard, record = self._segments[segment]
            view = self._views[segment] = shard.tokens(record)
        return view

    def _verify(self, segment: int, start: int, stop: int) -> None:
        shard, record = self._segments[segment]
        width = self.dtype.itemsize
        shard.verify(record.tokens_position + start * width, record.tokens_position + stop * width)

    def _verify_rows(self, segments: Int64Array, offsets: Int64Array, lengths: Int64Array) -> None:
        width = self.dtype.itemsize
        bytes_ = self._byte_bases[segments] + offsets * width
        first, last = bytes_ // BLOCK_BYTES, (bytes_ + lengths * width - 1) // BLOCK_BYTES
        clean = self._verified[first] & self._verified[last] & (last - first <= 1)
        for row in np.flatnonzero(~clean).tolist():
            self._verify(int(segments[row]), int(offsets[row]), int(offsets[row] + lengths[row]))

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.tokens:
            raise DatasetError(
                f"Tokens {start} to {stop} were asked of the {self.split} split, which has {self.tokens}: "
                "stay within it."
            )
