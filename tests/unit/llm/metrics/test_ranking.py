"""Curves for a report: scikit-learn's, thinned."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from llm.metrics.ranking import CURVE_POINTS, drawn_curves

THINNING = 0.005
"""Half a step of 200 along a path of length 2: the area under a thinned curve is as near."""


def test_curves_are_those_of_scikit_learn_when_points_are_few() -> None:
    positives_N, scores_N = np.array([0, 1, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.35, 0.8])
    curves = drawn_curves("spam", scores_N, positives_N)
    assert curves is not None
    roc, precision_recall = curves
    false_rate, true_rate, _ = roc_curve(positives_N, scores_N)
    precision, recall, _ = precision_recall_curve(positives_N, scores_N)
    assert (roc["x"], roc["y"]) == (false_rate.tolist(), true_rate.tolist())
    assert (precision_recall["x"], precision_recall["y"]) == (recall[::-1].tolist(), precision[::-1].tolist())
    assert precision_recall["base"] == 0.6


def test_curves_keep_ends_and_area_when_points_are_thinned() -> None:
    random = np.random.default_rng(0)
    positives_N = random.integers(2, size=20_000)
    curves = drawn_curves("spam", positives_N + random.normal(size=20_000), positives_N)
    assert curves is not None
    for curve in curves:
        assert len(curve["x"]) <= CURVE_POINTS + 1
        assert auc(curve["x"], curve["y"]) == pytest.approx(curve["area"], abs=THINNING)
        assert (curve["x"][0], curve["x"][-1]) == (0.0, 1.0)


@pytest.mark.parametrize("positive", [0, 1])
def test_curves_are_absent_when_all_examples_are_alike(positive: int) -> None:
    assert drawn_curves("spam", np.linspace(0, 1, 5), np.full(5, positive)) is None
