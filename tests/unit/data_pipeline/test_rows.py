"""Sequences in a stream: at a stride every token but the first is a target once, packed every one within a document."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, MixtureEntry
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan
from data_pipeline.rows import DocumentRows, StreamRows, cut_rows, pack_documents
from data_pipeline.sequences import TrainingSequences, ValidationSequences
from data_pipeline.skip_ledger import SkipLedger
from data_pipeline.trace import trace_sequences

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=30)


def packed_slowly(lengths: list[int], seq_len: int) -> list[tuple[int, int]]:
    """Twin: documents go into the open sequence one by one, as long as they fit."""
    rows: list[tuple[int, int]] = []
    start = position = 0
    for length in lengths:
        if position > start and position + length - start > seq_len + 1:
            rows.append((start, position))
            start = position
        position += length
        while position - start > seq_len + 1:  # alone and too long
            rows.append((start, start + seq_len + 1))
            start += seq_len
    return [*rows, (start, position)]


@given(LENGTHS, st.integers(1, 50))
def test_packing_is_that_of_the_slow_twin(lengths: list[int], seq_len: int) -> None:
    begins = np.cumsum([0, *lengths])
    starts, stops = pack_documents(begins[:-1], int(begins[-1]), seq_len)
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == packed_slowly(lengths, seq_len)


@given(LENGTHS, st.integers(1, 50))
def test_every_target_within_a_document_is_in_one_sequence(lengths: list[int], seq_len: int) -> None:
    begins = np.cumsum([0, *lengths])
    starts, stops = pack_documents(begins[:-1], int(begins[-1]), seq_len)
    found = Counter(at for start, stop in zip(starts, stops, strict=True) for at in range(start + 1, stop))
    within = set(range(begins[-1])) - set(begins.tolist())
    assert {at: found[at] for at in within} == dict.fromkeys(within, 1)
    assert max(found.values()) == 1
    assert (stops - starts <= seq_len + 1).all()


@given(LENGTHS, st.integers(40, 90))
def test_documents_that_fit_are_whole(lengths: list[int], seq_len: int) -> None:
    begins = np.cumsum([0, *lengths])
    starts, stops = pack_documents(begins[:-1], int(begins[-1]), seq_len)
    assert set(starts.tolist()) | set(stops.tolist()) <= set(begins.tolist())
    assert starts.tolist() == [0, *stops.tolist()[:-1]]


@given(st.integers(0, 60), st.integers(1, 20), st.booleans())
def test_stride_counts_what_its_bounds_say(tokens: int, seq_len: int, with_last: bool) -> None:
    cut = StreamRows(tokens, seq_len, with_last)
    rows = np.arange(cut.count)
    starts, stops = cut.bounds(rows)
    targets = [at for start, stop in zip(starts, stops, strict=True) for at in range(start + 1, stop)]
    assert targets == list(range(1, len(targets) + 1))
    assert cut.targets == cut.targets_of(rows) == len(targets)
    assert tokens - 1 - len(targets) < (1 if with_last else seq_len)


@pytest.fixture(scope="module")
def packed(chats: Dataset) -> DataPlan:
    return plan_of(chats, packing="documents")


def plan_of(*datasets: Dataset, packing: str, seq_len: int = 64) -> DataPlan:
    entries = tuple(MixtureEntry(path=str(number)) for number in range(len(datasets)))
    config = DataConfig(dataset=entries, seq_len=seq_len, packing=packing)  # type: ignore[arg-type]
    return DataPlan(datasets, config, seed=3, global_batch_size=4, answers_only=True)


def test_plan_tells_its_packing(packed: DataPlan, chats: Dataset) -> None:
    assert packed.describe()["packing"] == "documents"
    assert packed.fingerprint != plan_of(chats, packing="stream").fingerprint


def test_batch_holds_documents_from_their_beginning_and_padding(packed: DataPlan, chats: Dataset) -> None:
    stream = chats.split("train")
    indices = np.arange(packed.rows[0])
    batch = TrainingSequences(packed).read(indices)
    _, row, _ = packed.order.locate(indices)
    starts, stops = packed.cuts[0].bounds(row)
    for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        tokens, read = stream.read(start, stop), min(stop - start, 64)
        assert batch.tokens[number, :read].tolist() == tokens[:read].tolist()
        assert not batch.tokens[number, read:].any()
        assert batch.loss_weights[number, : stop - start - 1].tolist() == stream.read_answers(start + 1, stop).tolist()
        assert not batch.loss_weights[number, stop - start - 1 :].any()
        inside = batch.document_ids[number, :read]
        assert inside.tolist() == (np.cumsum(tokens[:read] == stream.bos_id) - (tokens[0] == stream.bos_id)).tolist()
        assert (batch.document_ids[number, read:] > inside[-1]).all()


def test_conversation_is_in_one_sequence_when_it_fits(packed: DataPlan, chats: Dataset) -> None:
    starts, stops = packed.cuts[0].bounds(np.arange(packed.rows[0]))
    stream = chats.split("train")
    places = [stream.document(index) for index in range(stream.documents)]
    whole = [any((starts <= place.start) & (place.stop <= stops)) for place in places]
    assert whole == [place.stop - place.start <= 65 for place in places]
    assert 0.5 < np.mean(whole) < 1


def test_every_answer_is_a_target_once_an_epoch(packed: DataPlan, chats: Dataset) -> None:
    batch = TrainingSequences(packed).read(np.arange(packed.rows[0]))
    assert batch.loss_weights.sum() == chats.manifest.splits["train"].answer_tokens
    sequences = ValidationSequences(chats, 64, True, answers_only=True, packing="documents")
    scored = sequences.read(np.arange(len(sequences)))
    assert scored.loss_weights.sum() == chats.manifest.splits["validation"].answer_tokens


@given(st.integers(0, 400), st.lists(st.tuples(st.integers(0, 900), st.integers(1, 40)), max_size=3))
def test_ledger_adds_up_target_by_target(
    packed: DataPlan, chats: Dataset, step: int, ranges: list[tuple[int, int]]
) -> None:
    skips = SkipLedger()
    for start, length in ranges:
        skips = skips.add(start, start + length)
    (entry,) = packed.ledger(step, skips)
    position, rows = packed.position_after(step, skips), packed.rows[0]
    floor = max(0, position - 1) // rows * rows
    left_out = {index for start, stop in skips.intervals for index in range(start, stop)}
    trained = skipped = 0
    for index in range(floor, position):
        _, row, _ = packed.order.locate([index])
        starts, stops = packed.cuts[0].bounds(row)
        targets = int(stops[0] - starts[0] - 1)
        trained, skipped = (trained, skipped + targets) if index in left_out else (trained + targets, skipped)
    assert (entry.trained_tokens, entry.skipped_tokens) == (trained, skipped)
    assert entry.problem() is None
    assert entry.tail_tokens == chats.split("train").tokens - packed.cuts[0].targets


def test_trace_names_the_whole_documents_of_a_sequence(packed: DataPlan) -> None:
    for traced in trace_sequences(packed, range(20)):
        starts, stops = packed.cuts[0].bounds(np.array([traced.row]))
        assert sum(part.tokens for part in traced.parts) == stops[0] - starts[0]
        assert traced.parts[0].document.start + traced.parts[0].first_token == starts[0]


def test_nothing_is_cut_from_an_empty_split(chats: Dataset) -> None:
    assert cut_rows(chats.split("train"), 8, "stream").count > 0

    class Empty:
        tokens = 0

    assert (DocumentRows(Empty(), 8).count, StreamRows(0, 8, True).count) == (0, 0)  # type: ignore[arg-type]
