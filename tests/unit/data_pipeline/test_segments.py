"""How a period of the order is divided among sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import OrderError
from data_pipeline.segments import PERIOD, quotas_of


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=8))
def test_quotas_are_within_one_of_their_share_when_weights_vary(weights: list[float]) -> None:
    quotas = quotas_of(weights)
    assert quotas.sum() == PERIOD
    assert np.abs(quotas - np.array(weights) / sum(weights) * PERIOD).max() < 1


def test_quotas_go_to_the_largest_remainders_when_shares_are_not_whole() -> None:
    assert quotas_of([0.3, 0.3, 0.4]).tolist() == [1229, 1229, 1638]  # of 1228.8, 1228.8 and 1638.4
    assert quotas_of([1.0, 1.0, 1.0, 0.0]).tolist() == [1366, 1365, 1365, 0]


def test_quotas_name_the_smallest_weight_when_one_gets_no_place() -> None:
    with pytest.raises(
        OrderError, match=r"Weight 0\.0001 of dataset 1 .*weight of at least 0\.0002442, or leave it out"
    ):
        quotas_of([1.0, 0.0001])
    assert quotas_of([1.0, 0.0002442]).tolist() == [PERIOD - 1, 1]
