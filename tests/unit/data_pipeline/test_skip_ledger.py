from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import OrderError
from data_pipeline.skip_ledger import SkipLedger

INTERVALS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    max_size=8,
)


def _ledger(intervals: list[tuple[int, int]]) -> SkipLedger:
    ledger = SkipLedger()
    for start, stop in intervals:
        ledger = ledger.add(start, stop)
    return ledger


@given(INTERVALS)
def test_skip_ledger_agrees_with_a_set_when_intervals_are_added_in_any_order(
    intervals: list[tuple[int, int]],
) -> None:
    ledger = _ledger(intervals)
    skipped = {index for start, stop in intervals for index in range(start, stop)}
    kept = [index for index in range(300) if index not in skipped]
    assert {i for start, stop in ledger.intervals for i in range(start, stop)} == skipped
    assert ledger.logical(np.arange(100)).tolist() == kept[:100]
    assert [ledger.position_after(count) for count in range(100)] == kept[:100]
    for position in range(100):
        assert ledger.skipped_before(position) == sum(index < position for index in skipped)


@given(INTERVALS)
def test_skip_ledger_is_canonical_when_the_same_indices_are_added_otherwise(
    intervals: list[tuple[int, int]],
) -> None:
    assert _ledger(intervals) == _ledger(intervals[::-1])


@given(INTERVALS)
def test_skip_ledger_round_trips_when_written_as_json(intervals: list[tuple[int, int]]) -> None:
    ledger = _ledger(intervals)
    assert SkipLedger.from_json(ledger.to_json()) == ledger


def test_skip_ledger_maps_instantly_when_positions_are_huge() -> None:
    ledger = SkipLedger().add(10**12, 10**12 + 7)
    assert ledger.logical([10**12 - 1, 10**12]).tolist() == [10**12 - 1, 10**12 + 7]


@pytest.mark.parametrize("interval", [(-1, 3), (4, 4), (5, 2)])
def test_skip_ledger_refuses_when_an_interval_is_not_one(interval: tuple[int, int]) -> None:
    with pytest.raises(OrderError, match="Cannot skip the interval"):
        SkipLedger().add(*interval)


def test_skip_ledger_refuses_when_stored_intervals_overlap() -> None:
    with pytest.raises(OrderError, match=r"interval \[4, 9\) after index 5"):
        SkipLedger.from_json([[1, 5], [4, 9]])
