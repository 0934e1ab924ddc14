from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan
from data_pipeline.sequences import Batch, TrainingSequences, ValidationSequences, bigram_pairs
from data_pipeline.skip_ledger import SkipLedger

SEQ_LENS = [1, 2, 37, 256, 5000]
_NO_SKIPS = SkipLedger()


def _sequences(dataset: Dataset, seq_len: int, document_mask: bool = True) -> TrainingSequences:
    config = DataConfig(dataset="x", seq_len=seq_len, document_mask=document_mask)
    return TrainingSequences(DataPlan([dataset], config, seed=3, global_batch_size=4))


def _assert_equal(left: Batch, right: Batch) -> None:
    for field in fields(Batch):
        first, second = getattr(left, field.name), getattr(right, field.name)
        assert first.dtype == second.dtype
        assert np.array_equal(first, second), field.name


def _slow(dataset: Dataset, sequences: TrainingSequences, logical: int) -> Batch:
    """Slow twin: token by token, documents from the shards' own offsets."""
    stream, length = dataset.split("train"), sequences.seq_len
    _, row, _ = sequences.plan.order.locate(np.array([logical]))
    start = int(row[0]) * length
    tokens = stream.read(0, stream.tokens)
    document_of = np.searchsorted(stream.document_starts(0, stream.tokens), np.arange(stream.tokens), side="right")
    mask = sequences.plan.config.document_mask
    weights, documents = [], []
    for place in range(start, start + length):
        weights.append(1.0 if not mask or document_of[place] == document_of[place + 1] else 0.0)
        documents.append(document_of[place] - document_of[start] if mask else 0)
    return Batch(
        tokens=tokens[None, start : start + length].astype(np.int64),
        targets=tokens[None, start + 1 : start + length + 1].astype(np.int64),
        loss_weights=np.array([weights], dtype=np.float32),
        document_ids=np.array([documents], dtype=np.int32),
        sample_index=np.array([logical]),
    )


@pytest.mark.parametrize("document_mask", [True, False])
@pytest.mark.parametrize("seq_len", SEQ_LENS)
def test_batch_agrees_with_the_slow_twin_when_seq_len_is(seq_len: int, document_mask: bool, dataset: Dataset) -> None:
    sequences = _sequences(dataset, seq_len, document_mask)
    indices = np.random.default_rng(0).integers(0, 10**6, 12)
    expected = Batch.concatenate([_slow(dataset, sequences, int(index)) for index in indices])
    _assert_equal(sequences.read(indices), expected)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_batch_agrees_with_the_slow_twin_when_a_document_begins_at_its_end(before: int, dataset: Dataset) -> None:
    second = int(dataset.split("train").document_starts(1, 20_000)[0])
    sequences = _sequences(dataset, second + before)
    _, row, _ = sequences.plan.order.locate(np.arange(sequences.plan.rows[0]))
    first = int(np.flatnonzero(row == 0)[0])
    batch = sequences.read([first])
    _assert_equal(batch, _slow(dataset, sequences, first))
    assert batch.loss_weights[0, second - 1] == 0
    assert batch.document_ids[0, second:].tolist() == [1] * before


def test_batch_is_identical_when_read_row_by_row(dataset: Dataset) -> None:
    sequences = _sequences(dataset, 64)
    indices = np.array([5, -1, 900, 3, 3, -1, 10**9])
    whole = sequences.read(indices)
    _assert_equal(whole, Batch.concatenate([sequences.read([index]) for index in indices]))
    _assert_equal(whole[1:4], sequences.read(indices[1:4]))
    _assert_equal(whole[1:2], Batch.padding(1, 64))
    assert len(whole) == 7


@pytest.mark.parametrize("indices", [[], [-1], [-1, -1]])
def test_batch_is_padding_when_no_row_is_real(indices: list[int], dataset: Dataset) -> None:
    _assert_equal(_sequences(dataset, 16).read(indices), Batch.padding(len(indices), 16))


@pytest.mark.parametrize("seq_len", [50, 256, 999])
def test_every_stream_token_is_a_target_once_when_an_epoch_is_read(seq_len: int, dataset: Dataset) -> None:
    sequences = _sequences(dataset, seq_len)
    rows = sequences.plan.rows[0]
    batch = sequences.read(np.arange(rows))
    _, row, _ = sequences.plan.order.locate(np.arange(rows))
    stream = dataset.split("train")
    targets = batch.targets[np.argsort(row)].ravel()
    assert np.array_equal(targets, stream.read(1, 1 + rows * seq_len))
    assert stream.tokens - len(targets) == sequences.plan.ledger(0, _NO_SKIPS)[0].tail_tokens


@pytest.mark.parametrize("seq_len", SEQ_LENS)
def test_every_validation_token_is_scored_once_when_all_rows_are_read(seq_len: int, dataset: Dataset) -> None:
    stream = dataset.split("validation")
    for document_mask in (True, False):
        sequences = ValidationSequences(dataset, seq_len, document_mask)
        batch = sequences.read(np.arange(len(sequences)))
        real = np.arange(batch.targets.size) < stream.tokens - 1
        assert np.array_equal(batch.targets.ravel()[real], stream.read(1, stream.tokens))
        assert not batch.loss_weights.ravel()[~real].any()
        if document_mask:
            contexts, targets = bigram_pairs(stream)
            scored = batch.loss_weights.ravel() > 0
            assert np.array_equal(batch.tokens.ravel()[scored], contexts)
            assert np.array_equal(batch.targets.ravel()[scored], targets)
        else:
            assert batch.loss_weights.sum() == stream.tokens - 1


def test_padding_is_a_document_of_its_own_when_the_last_row_is_short(dataset: Dataset) -> None:
    sequences = ValidationSequences(dataset, 256, True)
    last = sequences.read([len(sequences) - 1, -1])
    tokens = dataset.split("validation").tokens - (len(sequences) - 1) * 256
    assert 0 < tokens < 256
    assert (last.document_ids[0, tokens:] == last.document_ids[0, tokens - 1] + 1).all()
    _assert_equal(last[1:], Batch.padding(1, 256))
    with pytest.raises(IndexError, match=f"there are {len(sequences)}, counted from 0"):
        sequences.read([len(sequences)])


def test_bigram_pairs_are_those_within_documents_when_taken(dataset: Dataset) -> None:
    stream = dataset.split("train")
    contexts, targets = bigram_pairs(stream)
    expected: list[tuple[int, int]] = []
    for index in range(stream.documents):
        document = stream.document(index)
        tokens = stream.read(document.start, document.stop).tolist()
        expected += pairwise(tokens)
    assert list(zip(contexts.tolist(), targets.tolist(), strict=True)) == expected
