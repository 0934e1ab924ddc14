"""Bootstrap draws, their percentiles, and how often these hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llm.errors import MetricsError
from llm.metrics import intervals
from llm.metrics.intervals import Statistic, draws, ends, percentile_intervals, resampled

FloatArray = NDArray[np.float64]
COVERAGE = (0.90, 0.98)
"""Of 95 % intervals over 300 data sets: the binomial error is 0.013, the percentile method's at 60 examples 0.01."""


def mean_of(values_N: FloatArray) -> Statistic:
    return lambda counts_NR: {"mean": (values_N @ counts_NR) / counts_NR.sum(axis=0)}


def test_draws_have_as_many_examples_as_there_are() -> None:
    (counts_NR,) = draws(50, 40, seed=0)
    assert counts_NR.shape == (50, 40)
    assert (counts_NR.sum(axis=0) == 50).all()
    assert len({tuple(column) for column in counts_NR.T.tolist()}) == 40


def test_draws_are_the_same_when_they_come_in_other_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole_NR,) = draws(37, 30, seed=5)
    monkeypatch.setattr(intervals, "_COUNTS_AT_ONCE", 37 * 9)
    blocks = list(draws(37, 30, seed=5))
    assert len(blocks) == 4
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole_NR)


def test_figures_equal_those_of_copied_examples() -> None:
    values_N = np.random.default_rng(0).normal(size=30)
    (counts_NR,) = draws(30, 12, seed=1)
    found_R = resampled(mean_of(values_N), 30, resamples=12, seed=1)["mean"]
    np.testing.assert_allclose(found_R, [np.repeat(values_N, counts_N).mean() for counts_N in counts_NR.T], rtol=1e-12)


def test_ends_are_the_percentiles_of_the_draws() -> None:
    assert ends({"x": np.arange(101.0)}, 0.5) == {"x": (25.0, 75.0)}


def test_intervals_hold_the_truth_in_their_share_of_data_sets() -> None:
    random = np.random.default_rng(7)
    holding = 0
    for place in range(300):
        data_N = (random.random(60) < 0.7).astype(np.float64)
        low, high = percentile_intervals(mean_of(data_N), 60, resamples=400, seed=place)["mean"]
        holding += low <= 0.7 <= high
    assert COVERAGE[0] <= holding / 300 <= COVERAGE[1]


def test_intervals_are_the_same_when_the_seed_is() -> None:
    statistic = mean_of(np.random.default_rng(0).normal(size=30))
    first, again, other = (percentile_intervals(statistic, 30, resamples=50, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("undefined", "kept"), [(10, True), (11, False)])
def test_interval_is_left_out_when_more_than_a_tenth_of_the_draws_is_undefined(undefined: int, kept: bool) -> None:
    values_R = np.append(np.ones(100 - undefined), np.full(undefined, np.nan))
    assert ("x" in ends({"x": values_R})) is kept


def test_intervals_are_refused_when_nothing_can_be_drawn() -> None:
    with pytest.raises(MetricsError) as refusal:
        percentile_intervals(mean_of(np.ones(3)), 3, resamples=0)
    assert str(refusal.value) == (
        "intervals were asked of 3 examples and 0 draws: both must be at least 1. "
        "Ask for no intervals (resamples=0) instead."
    )


def test_intervals_are_refused_when_confidence_is_no_share() -> None:
    with pytest.raises(MetricsError) as refusal:
        percentile_intervals(mean_of(np.ones(3)), 3, resamples=5, confidence=95)
    assert str(refusal.value) == ("confidence is 95: it is a share of the draws, above 0 and under 1. Use 0.95.")
