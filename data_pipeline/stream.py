"""One split of a dataset as a single stream of tokens over its memory-mapped shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.columns import Blocks, Column
from data_pipeline.errors import DatasetError
from data_pipeline.labels import label_field
from data_pipeline.manifest import Manifest
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

    In a conversation EOS also stands behind each answer before the last.

    Nothing is loaded: a position is found by binary search over the record batches (segments), then in one.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: str) -> None:
        records = [record for record in manifest.shards if record.split == split]
        self.split = split
        self._directory = directory
        self.bos_id = manifest.bos_id
        self.dtype: np.dtype[Any] = np.dtype(manifest.token_dtype)
        self.tokens = manifest.splits[split].tokens
        """Length of the stream."""
        self.documents = manifest.splits[split].documents
        """Documents in the stream."""
        self.shards = [MappedShard(directory, record) for record in records]
        self._segments = [(shard, segment) for shard in self.shards for segment in shard.record.segments]
        self._starts = np.cumsum([0, *(s.tokens for _, s in self._segments)], dtype=np.int64)
        self._first_documents = np.cumsum([0, *(s.documents for _, s in self._segments)], dtype=np.int64)
        blocks = Blocks(self.shards)
        positions = [segment.tokens_position for _, segment in self._segments]
        self._tokens = Column(self._segments, positions, self.dtype, self._starts, blocks)
        self._answers = None
        if manifest.chat_template is not None:
            masks = [segment.answer_mask_position or 0 for _, segment in self._segments]
            self._answers = Column(self._segments, masks, np.dtype(np.uint8), self._starts, blocks)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Returns a copy of the tokens at stream positions [start, stop).

        Raises:
            DatasetDamagedError: A block under them is not what it was.
        """
        self._check(start, stop)
        return self._tokens.read(start, stop)

    def read_answers(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Returns 1 for the tokens at stream positions [start, stop) that are an answer's, 0 for the others.

        Raises:
            DatasetError: The dataset holds text, of which nothing is an answer.
        """
        self._check(start, stop)
        return self._answer_column().read(start, stop)

    def rows(self, starts: Int64Array, length: int) -> npt.NDArray[Any]:
        """Returns many stretches of equal length.

        Args:
            starts: Stream positions. Shape: (B,).
            length: Tokens of each.

        Returns:
            Tokens. Shape: (B, length).
        """
        return self._rows(self._tokens, starts, length)

    def answer_rows(self, starts: Int64Array, length: int) -> npt.NDArray[np.uint8]:
        """Returns what `read_answers` says of many stretches of equal length; arguments as of `rows`."""
        return self._rows(self._answer_column(), starts, length)

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

    def labels(self, kind: str) -> Any:
        """Returns the label of every document, as shards hold it.

        Args:
            kind: See `data_pipeline.label_config.LabelsConfig`.

        Returns:
            int32 classes or float64 numbers of shape (documents,); or a list with an int32 array for each document, of
            its classes, or of one for each of its tokens.
        """
        name = label_field(kind).name
        columns = []
        for shard in self.shards:
            columns += [shard.batch(number).column(name) for number in range(len(shard.record.segments))]
        if kind in ("class", "number"):
            dtype = np.int32 if kind == "class" else np.float64
            return np.concatenate([np.zeros(0, dtype), *(column.to_numpy() for column in columns)])
        return [row.values.to_numpy() for column in columns for row in column]

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

    def _rows(self, column: Column, starts: Int64Array, length: int) -> npt.NDArray[Any]:
        if len(starts) == 0:
            return np.empty((0, length), dtype=column.dtype)
        self._check(int(starts.min()), int(starts.max()) + length)
        return column.rows(starts, length)

    def _answer_column(self) -> Column:
        if self._answers is None:
            raise DatasetError(
                f"Answers were asked of the {self.split} split of {self._directory}, a dataset of text, in which "
                "nothing is an answer. Build one of conversations: name messages_field, or prompt_field and "
                "answer_field, of its sources."
            )
        return self._answers

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.tokens:
            raise DatasetError(
                f"Tokens {start} to {stop} were asked of the {self.split} split, which has {self.tokens}: "
                "stay within it."
            )
