from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.batches import PADDING, micro_batch_count, rows_of_rank

sizes = st.integers(min_value=1, max_value=40)


@given(batch=sizes, world=sizes, micro=sizes)
def test_rows_of_rank_hold_each_index_once_whatever_divides(batch: int, world: int, micro: int) -> None:
    indices = np.arange(100, 100 + batch)
    rows = [rows_of_rank(indices, rank, world, micro) for rank in range(world)]
    real = np.concatenate([part[part != PADDING] for part in rows])
    assert sorted(real.tolist()) == indices.tolist()


@given(batch=sizes, world=sizes, micro=sizes)
def test_rows_of_rank_have_one_shape_on_every_rank(batch: int, world: int, micro: int) -> None:
    shapes = {rows_of_rank(np.arange(batch), rank, world, micro).shape for rank in range(world)}
    assert shapes == {(micro_batch_count(batch, world, micro), micro)}


def test_rows_of_rank_are_even_when_the_batch_does_not_divide() -> None:
    rows = [rows_of_rank(np.arange(5), rank, 4, 2).reshape(-1).tolist() for rank in range(4)]
    assert rows == [[0, 1], [2, PADDING], [3, PADDING], [4, PADDING]]
