from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.batches import PADDING, micro_batch_count, rows_of_rank
from data_pipeline.batch_sizes import BatchSizes, BatchSizeStage
from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan
from data_pipeline.skip_ledger import SkipLedger

sizes = st.integers(min_value=1, max_value=40)


@given(batch=sizes, world=sizes, micro=sizes)
def test_rows_of_rank_hold_each_index_once_whatever_divides(batch: int, world: int, micro: int) -> None:
    indices = np.arange(100, 100 + batch)
    rows = [rows_of_rank(indices, rank, world, micro) for rank in range(world)]
    real = np.concatenate([part[part != PADDING] for part in rows])
    assert sorted(real.tolist()) == indices.tolist()


@given(batch=sizes, world=sizes, micro=sizes)
def test_rows_of_rank_have_one_shape_on_every_rank_without_a_row_too_many(batch: int, world: int, micro: int) -> None:
    ((count, width),) = {rows_of_rank(np.arange(batch), rank, world, micro).shape for rank in range(world)}
    assert count == micro_batch_count(batch, world, micro)
    assert width <= micro
    assert count * (width - 1) < -(-batch // world)  # the rank with the most rows would not have room in less


@given(batch=sizes, world=sizes, micro=sizes)
def test_rows_of_rank_fill_the_micro_batch_when_every_step_has_one_shape(batch: int, world: int, micro: int) -> None:
    shapes = {rows_of_rank(np.arange(batch), rank, world, micro, one_shape=True).shape for rank in range(world)}
    assert shapes == {(micro_batch_count(batch, world, micro), micro)}


@st.composite
def growing(draw: st.DrawFn) -> BatchSizes:
    ends = sorted(draw(st.sets(st.integers(1, 12), max_size=3)))
    kinds = sorted(draw(st.sets(st.integers(1, 9), min_size=len(ends) + 1, max_size=len(ends) + 1)))
    stages = (BatchSizeStage(until_step=end, global_batch_size=size) for end, size in zip(ends, kinds, strict=False))
    return BatchSizes(kinds[-1], tuple(stages))


@settings(deadline=None)
@given(
    warmup=growing(),
    attempts=st.lists(st.tuples(st.integers(0, 15), sizes, sizes), min_size=1, max_size=4),
    skips=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=3),
)
def test_batches_are_the_same_whatever_the_attempts_and_topologies(
    warmup: BatchSizes, attempts: list[tuple[int, int, int]], skips: list[tuple[int, int]], dataset: Path
) -> None:
    ledger = SkipLedger()
    for start, length in skips:
        ledger = ledger.add(start, start + length)
    last = max(first for first, _, _ in attempts) + 3
    trained: dict[int, list[int]] = {}
    for first, world, micro in attempts:  # each begins at a checkpoint of its own, and opens the plan anew
        plan = DataPlan(
            [Dataset.open(dataset)],
            DataConfig(dataset=str(dataset), seq_len=8),
            seed=1,
            global_batch_size=warmup.final,
            batch_size_warmup=warmup.warmup,
        )
        for step in range(first + 1, last + 1):
            indices = plan.batch_indices(step, ledger)
            ranks = [rows_of_rank(indices, rank, world, micro).reshape(-1) for rank in range(world)]
            rows = np.concatenate(ranks)
            assert trained.setdefault(step, rows[rows != PADDING].tolist()) == rows[rows != PADDING].tolist()
    steps = range(min(trained), last + 1)
    in_order = ledger.logical(np.arange(warmup.through(steps[0] - 1), warmup.through(last)))
    assert [index for step in steps for index in trained[step]] == in_order.tolist()
    assert [len(trained[step]) for step in steps] == [warmup.at(step) for step in steps]


def test_rows_of_rank_are_divided_evenly_when_they_do_not_fill_all_micro_batches() -> None:
    assert rows_of_rank(np.arange(9), 0, 1, 4).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_rows_of_rank_are_even_when_the_batch_does_not_divide() -> None:
    rows = [rows_of_rank(np.arange(5), rank, 4, 2).reshape(-1).tolist() for rank in range(4)]
    assert rows == [[0, 1], [2, PADDING], [3, PADDING], [4, PADDING]]
