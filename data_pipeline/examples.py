"""Labelled documents as sequences: one each, cut at the sequence length, with targets where the labels stand."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetError
from data_pipeline.labels import NO_LABEL
from data_pipeline.plan import DataPlan
from data_pipeline.rows import ExampleRows
from data_pipeline.sequences import Batch, TrainingSequences
from data_pipeline.skip_ledger import SkipLedger

Int64Array = npt.NDArray[np.int64]

_LOOKED_UP = 1 << 20  # examples at a time
_BUCKET_TOKENS = 16
"""Batches are as long as their longest row, rounded up to this: few lengths, so that kernels are compiled for few."""


class Examples:
    """The labelled documents of a split, by number.

    Tokens beyond the sequence length are left out; a document's label then stands at the last token that is kept, and
    those of words that are left out do not count.

    Args:
        dataset: A dataset with labels.
        split: `train` or `validation`.
        seq_len: The most tokens of a row.
        class_weights: What a label of each class counts in the loss; None: 1. Shape: (C,).
        one_length: Pad every row to the sequence length, whatever stands beside it.

    Raises:
        DatasetError: The dataset has no labels.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        seq_len: int,
        *,
        class_weights: npt.NDArray[np.float32] | None = None,
        one_length: bool = False,
    ) -> None:
        self.labels = dataset.labels
        self.seq_len = seq_len
        self._stream = dataset.split(split)
        self._rows = ExampleRows(self._stream, seq_len)
        self.lengths = self._rows.lengths
        """Tokens of each row. Shape: (documents,)."""
        self._class_weights = class_weights
        self._one_length = one_length
        self._column: Any = None

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, indices: npt.ArrayLike) -> Batch:
        """Reads documents by number, -1 for a padding row.

        Returns:
            The batch, row for row, as long as its longest row rounded up, or all of one length. `targets` are int64
            classes or float32 numbers of shape (B, T), or float32 0 and 1 of shape (B, T, C) where a document has any
            number of C classes; `sample_index` is the number of the document.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        return self.assemble([None if index < 0 else self.row(index) for index in wanted.tolist()], wanted)

    def row(self, index: int) -> tuple[npt.NDArray[Any], Any]:
        """Tokens of a document, cut, and its label as it is stored; of words one for each token that is kept."""
        if not 0 <= index < len(self):
            raise IndexError(f"Document {index} was asked for; there are {len(self)}, counted from 0.")
        (start,), (stop,) = self._rows.bounds(np.array([index]))
        label = self._labels[index]
        tokens = self._stream.read(int(start), int(stop))
        return tokens, label[: len(tokens)] if self.labels.kind == "token_class" else label

    def assemble(self, rows: list[tuple[npt.NDArray[Any], Any] | None], sample_index: Int64Array) -> Batch:
        """Puts rows beside each other.

        Args:
            rows: As `row` gives them; None for padding.
            sample_index: What identifies each. Shape: (B,).
        """
        longest = max((len(row[0]) for row in rows if row is not None), default=1)
        length = min(-(-longest // _BUCKET_TOKENS) * _BUCKET_TOKENS, self.seq_len)
        if self._one_length:
            length = self.seq_len
        shape = (len(rows), length)
        tokens = np.zeros(shape, dtype=np.int64)
        weights = np.zeros(shape, dtype=np.float32)
        kind = self.labels.kind
        many = (len(self.labels.names),) if kind == "classes" else ()
        targets = np.zeros(shape + many, dtype=np.int64 if kind in ("class", "token_class") else np.float32)
        for number, row in enumerate(rows):
            if row is None:
                continue
            ids, label = row
            last = len(ids) - 1
            tokens[number, : len(ids)] = ids
            if kind == "token_class":
                stands = np.flatnonzero(label != NO_LABEL)
                targets[number, stands] = label[stands]
                weights[number, stands] = 1
            else:
                weights[number, last] = 1
                if kind == "classes":
                    targets[number, last, label] = 1
                else:
                    targets[number, last] = label
        if self._class_weights is not None:
            weights *= self._class_weights[targets]
        return Batch(
            tokens=tokens,
            targets=targets,
            loss_weights=weights,
            document_ids=np.zeros(shape, dtype=np.int32),
            sample_index=sample_index,
        )

    @property
    def _labels(self) -> Any:
        """Labels of all documents, read at first use."""
        if self._column is None:
            self._column = self._stream.labels(self.labels.kind)
        return self._column


class TrainingExamples:
    """The training examples of a plan, by logical index; see `data_pipeline.sequences.TrainingSequences`.

    Args:
        plan: What is trained on.
        one_length: See `Examples`.

    Raises:
        DatasetError: The labels of its datasets cannot be balanced, as it asks for.
    """

    def __init__(self, plan: DataPlan, *, one_length: bool = False) -> None:
        self.plan = plan
        weights = balanced_weights(plan.datasets) if plan.config.class_weights == "balanced" else None
        self._examples = [
            Examples(dataset, "train", plan.config.seq_len, class_weights=weights, one_length=one_length)
            for dataset in plan.datasets
        ]
        self._known_steps, self._known_tokens = [0], [0]

    def read(self, logical_indices: npt.ArrayLike) -> Batch:
        """Reads examples, -1 for a padding row. See `Examples.read`; `sample_index` is the logical index."""
        wanted = np.asarray(logical_indices, dtype=np.int64)
        real = np.flatnonzero(wanted >= 0)
        source, row, _ = self.plan.order.locate(wanted[real])
        rows: list[tuple[npt.NDArray[Any], Any] | None] = [None] * len(wanted)
        for place, number, document in zip(real.tolist(), source.tolist(), row.tolist(), strict=True):
            rows[place] = self._examples[number].row(document)
        return self._examples[0].assemble(rows, wanted)

    def lengths(self, logical_indices: Int64Array) -> Int64Array:
        """Tokens of each example. Shape: that of the indices, (B,)."""
        source, row, _ = self.plan.order.locate(logical_indices)
        lengths = np.empty(len(logical_indices), dtype=np.int64)
        for number, examples in enumerate(self._examples):
            lengths[source == number] = examples.lengths[row[source == number]]
        return lengths

    def tokens_through(self, step: int, skips: SkipLedger) -> int:
        """Returns the tokens of all batches up to a step, padding not counted; looks up those since the nearest asked.

        Args:
            step: The last one.
            skips: The same at every call.
        """
        place = bisect_right(self._known_steps, step) - 1
        known = self._known_steps[place]
        if known == step:
            return self._known_tokens[place]
        tokens = self._known_tokens[place]
        sizes, before = self.plan.batch_sizes, self.plan.config.begins_after_step
        first, last = (sizes.through(max(each, before)) - sizes.through(before) for each in (known, step))
        for start in range(first, last, _LOOKED_UP):
            ordinals = np.arange(start, min(start + _LOOKED_UP, last), dtype=np.int64)
            tokens += int(self.lengths(skips.logical(ordinals)).sum())
        self._known_steps.insert(place + 1, step)
        self._known_tokens.insert(place + 1, tokens)
        return tokens


def training_data(plan: DataPlan, *, one_length: bool = False) -> TrainingSequences | TrainingExamples:
    """What a plan trains on, as its packing says; sequences have one length anyway."""
    if plan.config.packing == "examples":
        return TrainingExamples(plan, one_length=one_length)
    return TrainingSequences(plan)


def balanced_weights(datasets: Sequence[Dataset]) -> npt.NDArray[np.float32]:
    """labels / (classes * labels of the class) over those that appear (King and Zeng 2001, as in scikit-learn).

    Args:
        datasets: With the same classes; their training splits are counted together, whatever share each has of them.

    Returns:
        Of each class. Shape: (C,).

    Raises:
        DatasetError: Their labels are no classes, of which a document or word has one.
    """
    first = datasets[0]
    if first.labels.kind not in ("class", "token_class"):
        raise DatasetError(
            f"data.class_weights is balanced, and {first.directory} is labelled with {first.labels.kind}: only one "
            "class of several can be balanced. Leave class_weights out."
        )
    counts = np.sum([dataset.labels.counts["train"] for dataset in datasets], axis=0, dtype=np.float64)
    weights: npt.NDArray[np.float64] = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return weights.astype(np.float32)
