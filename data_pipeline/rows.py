"""Where sequences begin and end in a stream of documents: cut at a stride, packed with documents, or one of each."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.stream import TokenStream

Int64Array = npt.NDArray[np.int64]
Packing = Literal["stream", "documents", "examples"]


class Rows(Protocol):
    """The sequences of a stream, numbered along it. Each token of one but the first is a target of the one before."""

    @property
    def count(self) -> int:
        """Sequences."""

    @property
    def targets(self) -> int:
        """Targets of all of them."""

    def bounds(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Returns the stream positions at which sequences begin, and those behind the last token that they read."""

    def targets_of(self, rows: Int64Array) -> int:
        """Returns the targets of some of them."""


@dataclass(frozen=True)
class StreamRows:
    """Sequences at stride seq_len, wherever documents begin: each token but the first is a target once."""

    tokens: int
    """Length of the stream."""
    seq_len: int
    with_last: bool = False
    """Also the rest of the stream, which is shorter than a sequence."""

    @property
    def count(self) -> int:
        """Sequences."""
        room = max(self.tokens - 1, 0)
        return -(-room // self.seq_len) if self.with_last else room // self.seq_len

    @property
    def targets(self) -> int:
        """Targets of all of them."""
        return max(self.tokens - 1, 0) if self.with_last else self.count * self.seq_len

    def bounds(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """See `Rows`."""
        starts = rows * self.seq_len
        return starts, np.minimum(starts + self.seq_len + 1, self.tokens)

    def targets_of(self, rows: Int64Array) -> int:
        """See `Rows`."""
        starts, stops = self.bounds(rows)
        return int((stops - starts - 1).sum())


class DocumentRows:
    """Sequences of whole documents, as many neighbours as fit; only documents that fit nowhere are cut, at a stride.

    Neighbours stay together, so that a sequence is one stretch of the stream. What is left of it is padding, half a
    document on average. Finding the sequences takes a pass over the documents' lengths, and 16 bytes for each.

    Args:
        stream: A split.
        seq_len: Tokens of a sequence; it reads one more.
    """

    def __init__(self, stream: TokenStream, seq_len: int) -> None:
        self._stream = stream
        self._seq_len = seq_len

    @property
    def count(self) -> int:
        """Sequences."""
        return len(self._bounds[0])

    @property
    def targets(self) -> int:
        """Targets of all of them."""
        starts, stops = self._bounds
        return int((stops - starts - 1).sum())

    def bounds(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """See `Rows`."""
        starts, stops = self._bounds
        return starts[rows], stops[rows]

    def targets_of(self, rows: Int64Array) -> int:
        """See `Rows`."""
        starts, stops = self.bounds(rows)
        return int((stops - starts - 1).sum())

    @cached_property
    def _bounds(self) -> tuple[Int64Array, Int64Array]:
        tokens = self._stream.tokens
        if tokens == 0:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        return pack_documents(self._stream.document_starts(0, tokens), tokens, self._seq_len)


class ExampleRows:
    """Each document by itself, which is read and not predicted; what is longer than a sequence is cut off.

    Args:
        stream: A split.
        seq_len: The most tokens of a sequence.
    """

    def __init__(self, stream: TokenStream, seq_len: int) -> None:
        self._stream = stream
        self._seq_len = seq_len

    @property
    def count(self) -> int:
        """Sequences."""
        return self._stream.documents

    @property
    def targets(self) -> int:
        """Tokens that all of them read."""
        return int(self.lengths.sum())

    def bounds(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """See `Rows`."""
        starts = self._starts[rows]
        return starts, starts + self.lengths[rows]

    def targets_of(self, rows: Int64Array) -> int:
        """Returns the tokens that some of them read."""
        return int(self.lengths[rows].sum())

    @cached_property
    def lengths(self) -> Int64Array:
        """Tokens of each sequence. Shape: (documents,)."""
        return np.minimum(self._stream.document_lengths(), self._seq_len)

    @cached_property
    def _starts(self) -> Int64Array:
        lengths = self._stream.document_lengths()
        return np.cumsum(lengths) - lengths


def pack_documents(document_starts: Int64Array, tokens: int, seq_len: int) -> tuple[Int64Array, Int64Array]:
    """Divides a stream of documents, of at least two tokens each, into sequences.

    Args:
        document_starts: Stream positions at which documents begin, the first 0. Shape: (documents,).
        tokens: Length of the stream.
        seq_len: Tokens of a sequence; it reads one more.

    Returns:
        Positions at which sequences begin and those behind their last token. Shape: (rows,) each.
    """
    ends = [*document_starts.tolist(), tokens]
    starts, stops = [], []
    position = 0
    while position < tokens:
        furthest = position + seq_len + 1
        end = ends[bisect_right(ends, furthest) - 1]
        starts.append(position)
        if end > position:
            stops.append(end)
            position = end
        else:  # a document that is longer: its next piece reads the last token again, which it has to predict from
            stops.append(furthest)
            position += seq_len
    return np.array(starts, dtype=np.int64), np.array(stops, dtype=np.int64)


def cut_rows(stream: TokenStream, seq_len: int, packing: Packing, *, with_last: bool = False) -> Rows:
    """Returns the sequences of a split.

    Args:
        stream: The split.
        seq_len: Tokens of a sequence.
        packing: `stream`, `documents` or `examples`.
        with_last: At a stride, also what is left at the end.
    """
    if packing == "examples":
        return ExampleRows(stream, seq_len)
    return DocumentRows(stream, seq_len) if packing == "documents" else StreamRows(stream.tokens, seq_len, with_last)
