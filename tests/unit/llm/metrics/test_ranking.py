"""Curves for a report: scikit-learn's, thinned."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from llm.metrics.measured import Curve
from llm.metrics.ranking import CURVE_POINTS, areas_of, curves_of

THINNING = 0.005
"""Half a step of 200 along a path of length 2: the area under a thinned curve is as near."""


def curves(scores_NK: NDArray[np.float64], positives_NK: NDArray[np.int64]) -> dict[str, list[Curve]]:
    names = [f"class {place}" for place in range(scores_NK.shape[1])]
    return curves_of(names, scores_NK, positives_NK, areas_of(scores_NK, positives_NK))


def test_curves_are_those_of_scikit_learn_when_points_are_few() -> None:
    positives_N, scores_N = np.array([0, 1, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.35, 0.8])
    found = curves(scores_N[:, None], positives_N[:, None])
    (roc,), (precision_recall,) = found["roc"], found["precision_recall"]
    false_rate, true_rate, _ = roc_curve(positives_N, scores_N)
    precision, recall, _ = precision_recall_curve(positives_N, scores_N)
    assert (roc["x"], roc["y"]) == (false_rate.tolist(), true_rate.tolist())
    assert (precision_recall["x"], precision_recall["y"]) == (recall[::-1].tolist(), precision[::-1].tolist())
    assert precision_recall["base"] == 0.6


def test_curves_keep_ends_and_area_when_points_are_thinned() -> None:
    random = np.random.default_rng(0)
    positives_N1 = random.integers(2, size=(20_000, 1))
    found = curves(positives_N1 + random.normal(size=(20_000, 1)), positives_N1)
    for curve in (*found["roc"], *found["precision_recall"]):
        assert len(curve["x"]) <= CURVE_POINTS + 1
        assert auc(curve["x"], curve["y"]) == pytest.approx(curve["area"], abs=THINNING)
        assert (curve["x"][0], curve["x"][-1]) == (0.0, 1.0)


def test_curves_are_left_out_when_all_examples_are_alike() -> None:
    positives_NK = np.column_stack([np.zeros(5, dtype=int), np.array([0, 1, 0, 1, 1]), np.ones(5, dtype=int)])
    found = curves(np.random.default_rng(0).random((5, 3)), positives_NK)
    assert [curve["name"] for curve in found["roc"]] == ["class 1"]
    assert [curve["name"] for curve in found["precision_recall"]] == ["class 1"]


def test_curves_are_those_of_the_commonest_classes_when_there_are_many() -> None:
    positives_NK = (np.arange(40)[:, None] < np.arange(1, 16)).astype(np.int64)
    found = curves(np.random.default_rng(0).random((40, 15)), positives_NK)
    assert [curve["name"] for curve in found["roc"]] == [f"class {place}" for place in range(5, 15)]
