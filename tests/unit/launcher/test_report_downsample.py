"""Thinning long series: against an obvious twin, and for what must never be lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from launcher.report.downsample import bucket_means, extreme_points, spread

FIGURES = st.lists(st.floats(-1e6, 1e6) | st.just(np.nan) | st.just(np.inf), max_size=300)


def _obvious_extremes(values: NDArray[np.float64], buckets: int) -> set[int]:
    present = [place for place, value in enumerate(values) if not np.isnan(value)]
    if len(present) <= 2 * buckets:
        return set(present)
    kept = {present[0], present[-1]}
    for bucket in np.array_split(np.array(present), buckets):
        finite = [place for place in bucket if np.isfinite(values[place])]
        lost = [place for place in bucket if not np.isfinite(values[place])]
        kept |= {int(place) for place in lost[:1]}
        if finite:
            kept |= {
                int(min(finite, key=lambda place: values[place])),
                int(max(finite, key=lambda place: values[place])),
            }
    return kept


@given(FIGURES, st.integers(1, 20))
def test_extreme_points_equals_its_obvious_twin(figures: list[float], buckets: int) -> None:
    values = np.array(figures, dtype=np.float64)
    assert set(extreme_points(values, buckets).tolist()) == _obvious_extremes(values, buckets)


def test_extreme_points_keeps_a_single_spike_ends_and_lost_numbers() -> None:
    values = np.random.default_rng(3).normal(size=100_000)
    values[54_321], values[60_000], values[77_777] = 99.0, -99.0, np.inf
    kept = extreme_points(values, 500)
    assert {0, 54_321, 60_000, 77_777, 99_999} <= set(kept.tolist())
    assert len(kept) <= 2 * 500 + 3


def test_bucket_means_weighted_by_count_give_the_mean_of_all() -> None:
    values = np.random.default_rng(3).normal(size=10_007)
    means = bucket_means(values, 100)
    assert len(means.index) == 100
    assert np.average(means.mean, weights=means.count) == pytest.approx(values.mean(), rel=1e-12)


def test_bucket_means_are_geometric_when_asked() -> None:
    values = np.exp(np.random.default_rng(3).normal(size=1000))
    means = bucket_means(values, 1, geometric=True)
    assert means.mean[0] == pytest.approx(float(np.exp(np.log(values).mean())), rel=1e-12)


def test_bucket_means_pass_short_series_through() -> None:
    means = bucket_means(np.array([1.0, np.nan, 3.0, np.inf]), 10)
    assert (means.index.tolist(), means.mean.tolist(), means.count.tolist()) == ([0, 2], [1.0, 3.0], [1, 1])


@given(st.integers(0, 2000), st.integers(2, 100))
def test_spread_keeps_the_ends_and_the_limit(count: int, limit: int) -> None:
    kept = spread(count, limit)
    assert len(kept) <= limit
    assert kept == sorted(set(kept))
    assert count == 0 or (kept[0], kept[-1]) == (0, count - 1)


def test_spread_keeps_what_it_must() -> None:
    assert 501 in spread(1000, 10, {501})
