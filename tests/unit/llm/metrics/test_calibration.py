"""Expected calibration error against its formula, bin by bin."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llm.metrics.calibration import BINS, Calibration
from llm.metrics.intervals import draws

TOLERANCE = 1e-12
"""Sums of a few hundred float64 in another order."""


def slow_error(confidences_N: NDArray[np.float64], correct_N: NDArray[np.bool_]) -> float:
    error = 0.0
    for place in range(BINS):
        inside_N = (confidences_N > place / BINS) & (confidences_N <= (place + 1) / BINS)
        if inside_N.any():
            error += inside_N.mean() * abs(correct_N[inside_N].mean() - confidences_N[inside_N].mean())
    return error


def test_error_equals_the_formula_for_every_draw() -> None:
    random = np.random.default_rng(1)
    confidences_N, correct_N = random.uniform(0.2, 1, size=200), random.random(200) < 0.6
    (counts_NR,) = draws(200, 10, seed=0)
    found_R = Calibration(confidences_N, correct_N).error(counts_NR)
    for draw, counts_N in enumerate(counts_NR.T):
        rows = np.repeat(np.arange(200), counts_N)
        assert found_R[draw] == pytest.approx(slow_error(confidences_N[rows], correct_N[rows]), abs=TOLERANCE)


def test_error_is_nothing_when_confidence_is_deserved() -> None:
    every_N1 = np.ones((4, 1), dtype=np.int64)
    calibration = Calibration(np.full(4, 0.75), np.array([True, True, True, False]))
    assert calibration.error(every_N1).tolist() == [0.0]
    assert calibration.table().rows == (("0.733 to 0.800", 4, 0.75, 0.75),)


def test_bins_reach_to_their_upper_end_when_confidence_is_on_it() -> None:
    table = Calibration(np.array([0.2, 0.2000001, 1.0]), np.ones(3, dtype=bool)).table()
    assert [row[:2] for row in table.rows] == [("0.133 to 0.200", 1), ("0.200 to 0.267", 1), ("0.933 to 1.000", 1)]
