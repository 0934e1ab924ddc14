"""Batches cut from token streams: the contract between data and model, as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan
from data_pipeline.rows import Packing, cut_rows
from data_pipeline.skip_ledger import SkipLedger
from data_pipeline.stream import TokenStream

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rows of tokens with their targets."""

    tokens: Int64Array
    """Shape: (B, T)."""
    targets: npt.NDArray[Any]
    """The token after each one, int64, of shape (B, T); of labelled documents see `data_pipeline.examples`."""
    loss_weights: npt.NDArray[np.float32]
    """1 where the target counts, 0 where it does not. Shape: (B, T)."""
    document_ids: npt.NDArray[np.int32]
    """Number of the document within the row, from 0; all 0 where documents are not masked. Shape: (B, T)."""
    sample_index: Int64Array
    """Logical index of each row, -1 for padding rows. Shape: (B,)."""

    def __len__(self) -> int:
        return len(self.sample_index)

    def __getitem__(self, rows: slice) -> Batch:
        """Returns some of the rows, as views."""
        return Batch(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @classmethod
    def padding(cls, rows: int, seq_len: int) -> Batch:
        """Returns rows that carry no weight."""
        return cls(
            tokens=np.zeros((rows, seq_len), dtype=np.int64),
            targets=np.zeros((rows, seq_len), dtype=np.int64),
            loss_weights=np.zeros((rows, seq_len), dtype=np.float32),
            document_ids=np.zeros((rows, seq_len), dtype=np.int32),
            sample_index=np.full(rows, -1, dtype=np.int64),
        )

    @classmethod
    def concatenate(cls, batches: Sequence[Batch]) -> Batch:
        """Returns the rows of all batches, in order."""
        return cls(**{f.name: np.concatenate([getattr(batch, f.name) for batch in batches]) for f in fields(cls)})


class TrainingSequences:
    """The training sequences of a plan, by logical index."""

    def __init__(self, plan: DataPlan) -> None:
        self.plan = plan
        self.seq_len = plan.config.seq_len
        self._streams = [dataset.split("train") for dataset in plan.datasets]

    def read(self, logical_indices: npt.ArrayLike) -> Batch:
        """Reads sequences.

        Args:
            logical_indices: Logical indices, -1 for a padding row. Shape: (B,).

        Returns:
            The batch, row for row.
        """
        wanted = np.asarray(logical_indices, dtype=np.int64)
        real = np.flatnonzero(wanted >= 0)
        source, row, _ = self.plan.order.locate(wanted[real])
        stretches = _Stretches(len(wanted), self.seq_len, self._streams[0].dtype, self.plan.answers_only)
        for number in np.unique(source).tolist():
            mine = source == number
            stretches.fill(real[mine], self._streams[number], *self.plan.cuts[number].bounds(row[mine]))
        return stretches.batch(wanted, self._streams[0].bos_id, self.plan.config.document_mask)

    def tokens_through(self, step: int, skips: SkipLedger) -> int:
        """Returns the tokens of all batches up to a step, whatever was left out between them."""
        return self.plan.batch_sizes.through(step) * self.seq_len


class ValidationSequences:
    """A validation split, cut like training, a shorter last row kept, so that every token is scored once.

    Args:
        dataset: The dataset.
        seq_len: Tokens of a row.
        document_mask: Keep targets within a document.
        answers_only: Score the tokens of answers alone, in a dataset of conversations.
        packing: As in `DataConfig`.
    """

    def __init__(
        self,
        dataset: Dataset,
        seq_len: int,
        document_mask: bool,
        *,
        answers_only: bool = False,
        packing: Packing = "stream",
    ) -> None:
        self.stream = dataset.split("validation")
        self.seq_len = seq_len
        self.document_mask = document_mask
        self.answers_only = answers_only
        self._cuts = cut_rows(self.stream, seq_len, packing, with_last=True)

    def __len__(self) -> int:
        return self._cuts.count

    def starts(self, indices: Int64Array) -> Int64Array:
        """Returns the stream positions at which rows begin. Shape: that of the indices, (B,)."""
        return self._cuts.bounds(indices)[0]

    def read(self, indices: npt.ArrayLike) -> Batch:
        """Reads rows by number, -1 for a padding row. See `TrainingSequences.read`."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and int(wanted.max()) >= len(self):
            raise IndexError(
                f"Validation row {int(wanted.max())} was asked for; there are {len(self)}, counted from 0."
            )
        real = np.flatnonzero(wanted >= 0)
        stretches = _Stretches(len(wanted), self.seq_len, self.stream.dtype, self.answers_only)
        stretches.fill(real, self.stream, *self._cuts.bounds(wanted[real]))
        return stretches.batch(wanted, self.stream.bos_id, self.document_mask)


class _Stretches:
    """Tokens of the rows of a batch, and where answers alone count their answer masks; zeros where there is none.

    Args:
        rows: B.
        seq_len: T.
        dtype: Of the tokens.
        with_answers: Whether answer masks are wanted.
    """

    def __init__(self, rows: int, seq_len: int, dtype: np.dtype[Any], with_answers: bool) -> None:
        shape = (rows, seq_len + 1)
        self.tokens = np.zeros(shape, dtype=dtype)
        self.answers = np.zeros(shape, dtype=np.uint8) if with_answers else None
        self.valid = np.zeros(rows, dtype=np.int64)

    def fill(self, rows: Int64Array, stream: TokenStream, starts: Int64Array, stops: Int64Array) -> None:
        """Reads the stretches [start, stop) of a stream into rows; shape of each argument: (rows,)."""
        length = self.tokens.shape[1]
        self.valid[rows] = stops - starts
        whole = starts + length <= stream.tokens  # so much can be read, whether or not all of it is wanted
        self.tokens[rows[whole]] = stream.rows(starts[whole], length)
        if self.answers is not None:
            self.answers[rows[whole]] = stream.answer_rows(starts[whole], length)
        for row, start, stop in zip(
            rows[~whole].tolist(), starts[~whole].tolist(), stops[~whole].tolist(), strict=True
        ):
            self.tokens[row, : stop - start] = stream.read(start, stop)
            if self.answers is not None:
                self.answers[row, : stop - start] = stream.read_answers(start, stop)
        for row in rows[stops - starts < length].tolist():
            self.tokens[row, self.valid[row] :] = 0
            if self.answers is not None:
                self.answers[row, self.valid[row] :] = 0

    def batch(self, index: Int64Array, bos_id: int, document_mask: bool) -> Batch:
        """Makes the batch of them; arguments as of `_batch`."""
        return _batch(self.tokens, index, self.valid, bos_id, document_mask, self.answers)


def _batch(
    raw: npt.NDArray[np.unsignedinteger],
    index: Int64Array,
    valid: Int64Array,
    bos_id: int,
    document_mask: bool,
    answers: npt.NDArray[np.uint8] | None = None,
) -> Batch:
    """Derives targets, weights and document numbers: a document begins at each BOS, which no text contains.

    Args:
        raw: Tokens; each row one longer than the sequence. Shape: (B, T + 1).
        index: Sample index of each row. Shape: (B,).
        valid: How many tokens of each row are real. Shape: (B,).
        bos_id: Token that begins a document.
        document_mask: Keep targets within a document.
        answers: 1 where a token is an answer's; only such targets count then. None: all do. Shape: (B, T + 1).
    """
    rows, length = raw.shape[0], raw.shape[1] - 1
    weights = np.ones((rows, length), dtype=np.float32) if answers is None else answers[:, 1:].astype(np.float32)
    documents = np.zeros((rows, length), dtype=np.int32)
    if document_mask:
        row, column = np.divmod(np.flatnonzero(raw == bos_id), length + 1)
        row, column = row[column > 0], column[column > 0]
        weights[row, column - 1] = 0
        documents = _document_ids(row, column, rows, length)
    for short in np.flatnonzero(valid <= length).tolist():
        weights[short, max(int(valid[short]) - 1, 0) :] = 0
        if document_mask and valid[short] > 0:
            documents[short, valid[short] :] = documents[short, valid[short] - 1] + 1
    return Batch(
        tokens=raw[:, :-1].astype(np.int64),
        targets=raw[:, 1:].astype(np.int64),
        loss_weights=weights,
        document_ids=documents,
        sample_index=index,
    )


def _document_ids(row: Int64Array, column: Int64Array, rows: int, length: int) -> npt.NDArray[np.int32]:
    """Numbers each row's documents by run lengths, cheaper than a running sum over every token.

    Args:
        row: Row of each document that begins after its row's first token, in order.
        column: Its first column; it may be `length`, one behind the row.
        rows: B.
        length: T.

    Returns:
        Document numbers from 0. Shape: (B, T).
    """
    inside = column < length
    row, column = row[inside], column[inside]
    # Run r begins at starts[r] of the flattened batch: one for each row and each document within it.
    starts = np.concatenate((np.arange(rows) * length, row * length + column))
    starts.sort()
    first_run = np.searchsorted(starts, np.arange(rows) * length)
    within = np.arange(len(starts)) - first_run[starts // length]
    runs = np.diff(starts, append=rows * length)
    return np.repeat(within.astype(np.int32), runs).reshape(rows, length)


def bigram_pairs(stream: TokenStream) -> tuple[Int64Array, Int64Array]:
    """Returns all pairs of neighbouring tokens within documents: the targets scored under `document_mask`.

    Args:
        stream: A split.

    Returns:
        Contexts and targets. Shape: (pairs,) each.
    """
    tokens = stream.read(0, stream.tokens)
    within = tokens[1:] != stream.bos_id
    return tokens[:-1][within].astype(np.int64), tokens[1:][within].astype(np.int64)
