"""From a training sequence back to the documents that it was cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan
from data_pipeline.stream import DocumentPlace


@dataclass(frozen=True, kw_only=True)
class TracedPart:
    """The stretch of one document that a sequence reads."""

    document: DocumentPlace
    first_token: int
    """Where the stretch begins within the document; 0 is its BOS."""
    tokens: int
    """Length of the stretch."""


@dataclass(frozen=True, kw_only=True)
class TracedSequence:
    """One sequence and where it comes from."""

    index: int
    """Logical index, the place in the order of training."""
    dataset: Dataset
    epoch: int
    """Passes over the dataset before this one."""
    row: int
    """Sequence of the dataset, counted along its stream."""
    parts: tuple[TracedPart, ...]
    """In the order of the stream; their tokens are those that the sequence reads."""


def trace_sequences(plan: DataPlan, logical_indices: Sequence[int]) -> tuple[TracedSequence, ...]:
    """Finds the documents of sequences.

    Args:
        plan: The data plan of the run that read them.
        logical_indices: Of the sequences, as `DataPlan.batch_indices` gives them; -1, a padding row, is passed over.

    Raises:
        OrderError: The data ends before one of them.
        DatasetDamagedError: A shard under them is not what it was.
    """
    wanted = np.array([index for index in logical_indices if index >= 0], dtype=np.int64)
    places = zip(wanted.tolist(), *(column.tolist() for column in plan.order.locate(wanted)), strict=True)
    return tuple(
        TracedSequence(
            index=index,
            dataset=plan.datasets[source],
            epoch=epoch,
            row=row,
            parts=_parts(plan.datasets[source], *_stretch(plan, source, row)),
        )
        for index, source, row, epoch in places
    )


def excerpt(dataset: Dataset, part: TracedPart, tokens: int) -> str:
    """Returns the text of the first so many tokens of a stretch; a character that is cut reads as U+FFFD.

    Raises:
        DatasetDamagedError: The tokens or the tokenizer are not what they were.
    """
    start = part.document.start + part.first_token
    ids = dataset.split("train").read(start, start + min(tokens, part.tokens))
    return dataset.tokenizer().decode(ids)


def _stretch(plan: DataPlan, source: int, row: int) -> tuple[int, int]:
    """The stream positions [start, stop) that a sequence reads."""
    starts, stops = plan.cuts[source].bounds(np.array([row], dtype=np.int64))
    return int(starts[0]), int(stops[0])


def _parts(dataset: Dataset, start: int, stop: int) -> tuple[TracedPart, ...]:
    """The documents under the stream positions [start, stop)."""
    stream = dataset.split("train")
    later = stream.document_starts(start, stop)
    begins = [start, *(later[later > start].tolist())]
    return tuple(
        TracedPart(
            document=place,
            first_token=begin - place.start,
            tokens=min(place.stop, stop) - begin,
        )
        for begin, place in zip(begins, stream.documents_at(begins), strict=True)
    )
