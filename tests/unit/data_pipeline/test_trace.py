"""Tracing sequences to documents, compared with what the sequences hold."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.config import DataConfig, MixtureEntry
from data_pipeline.dataset import Dataset
from data_pipeline.errors import OrderError
from data_pipeline.plan import DataPlan
from data_pipeline.sequences import TrainingSequences
from data_pipeline.trace import excerpt, trace_sequences


def _plan(dataset: Dataset, **changes: object) -> DataPlan:
    config = DataConfig(dataset=str(dataset.directory), seq_len=512, **changes)  # type: ignore[arg-type]
    return DataPlan([dataset], config, seed=7, global_batch_size=4)


def test_trace_finds_exactly_the_tokens_that_the_sequence_reads(dataset: Dataset) -> None:
    plan = _plan(dataset)
    stream = dataset.split("train")
    indices = list(range(plan.rows[0]))
    batch = TrainingSequences(plan).read(indices)
    traced = trace_sequences(plan, indices)
    assert max(len(one.parts) for one in traced) > 1  # documents meet within a sequence
    for row, one in enumerate(traced):
        starts = [part.document.start + part.first_token for part in one.parts]
        tokens = np.concatenate(
            [stream.read(start, start + part.tokens) for start, part in zip(starts, one.parts, strict=True)]
        )
        assert tokens.tolist() == [*batch.tokens[row].tolist(), int(batch.targets[row, -1])]
        assert all(
            part.document.start <= start < part.document.stop for start, part in zip(starts, one.parts, strict=True)
        )


def test_trace_names_index_epoch_and_document(dataset: Dataset) -> None:
    plan = _plan(dataset)
    index = plan.rows[0] + 1
    (one,) = trace_sequences(plan, [index])
    assert (one.index, one.epoch, one.dataset) == (index, 1, dataset)
    stored = dataset.split("train").document(one.parts[0].document.index)
    assert one.parts[0].document == stored


def test_trace_passes_over_padding_rows(dataset: Dataset) -> None:
    assert [one.index for one in trace_sequences(_plan(dataset), [-1, 3, -1])] == [3]
    assert trace_sequences(_plan(dataset), []) == ()


def test_trace_refuses_a_sequence_behind_the_end(dataset: Dataset) -> None:
    entry = MixtureEntry(path=str(dataset.directory), max_epochs=1)
    plan = DataPlan([dataset], DataConfig(dataset=(entry,), seq_len=512), seed=7, global_batch_size=4)
    with pytest.raises(OrderError, match="the data ends after"):
        trace_sequences(plan, [10**9])


def test_excerpt_gives_the_text_at_the_stretch(dataset: Dataset) -> None:
    (one,) = trace_sequences(_plan(dataset), [0])
    part = one.parts[0]
    start = part.document.start + part.first_token
    ids = dataset.split("train").read(start, start + 12)
    assert excerpt(dataset, part, 12) == dataset.tokenizer().decode(ids) != ""
    assert excerpt(dataset, part, 10**6) == dataset.tokenizer().decode(
        dataset.split("train").read(start, start + part.tokens)
    )
