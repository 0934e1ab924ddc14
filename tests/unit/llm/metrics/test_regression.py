"""Every figure of numbers against scikit-learn and SciPy, for the examples as they are and for draws of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn

from llm.metrics import Outputs, measure
from llm.metrics.intervals import draws
from llm.metrics.regression import regression_statistic

TOLERANCE = 1e-10
"""Sums of squares in float64, of which a few digits cancel."""
FloatArray = NDArray[np.float64]
Reference = Callable[..., Any]


def numbers(examples: int, seed: int, decimals: int = 12, offset: float = 0.0) -> tuple[FloatArray, FloatArray]:
    random = np.random.default_rng(seed)
    labels_N = random.normal(size=examples)
    predictions_N = labels_N + random.normal(size=examples)
    return np.round(predictions_N, decimals) + offset, np.round(labels_N, decimals) + offset


def expected(call: Reference, predictions_N: FloatArray, labels_N: FloatArray) -> dict[str, float]:
    """The headline by the libraries, NaN where we call a figure undefined."""
    varies = labels_N.min() < labels_N.max()
    both = varies and predictions_N.min() < predictions_N.max()
    return {
        "mse": call(sklearn.mean_squared_error, labels_N, predictions_N),
        "rmse": call(sklearn.root_mean_squared_error, labels_N, predictions_N),
        "mae": call(sklearn.mean_absolute_error, labels_N, predictions_N),
        "r2": call(sklearn.r2_score, labels_N, predictions_N) if varies else np.nan,
        "pearson": call(stats.pearsonr, predictions_N, labels_N)[0] if both else np.nan,
        "spearman": call(stats.spearmanr, predictions_N, labels_N)[0] if both else np.nan,
    }


@given(
    examples=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    decimals=st.sampled_from([0, 1, 12]),
    offset=st.sampled_from([0.0, -1000.0]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_figures_equal_the_libraries_when_values_tie_or_lie_far_from_zero(
    reference: Reference, examples: int, seed: int, decimals: int, offset: float
) -> None:
    predictions_N, labels_N = numbers(examples, seed, decimals, offset)
    found = regression_statistic(predictions_N, labels_N)(np.ones((examples, 1), dtype=np.int64))
    wanted = expected(reference, predictions_N, labels_N)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], [value], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_figures_of_draws_equal_the_libraries_on_the_examples_drawn(reference: Reference) -> None:
    predictions_N, labels_N = numbers(4, seed=2, decimals=1)  # so few that some draws are constant
    (counts_NR,) = draws(4, 200, seed=3)
    found = regression_statistic(predictions_N, labels_N)(counts_NR)
    assert np.isnan(found["pearson"]).any()
    for draw, counts_N in enumerate(counts_NR.T):
        rows = np.repeat(np.arange(4), counts_N)
        for name, value in expected(reference, predictions_N[rows], labels_N[rows]).items():
            np.testing.assert_allclose(found[name][draw], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_correlations_are_undefined_when_a_draw_has_one_example_many_times() -> None:
    predictions_N, labels_N = numbers(50, seed=0, offset=0.1)
    found = regression_statistic(predictions_N, labels_N)(50 * np.eye(50, dtype=np.int64))
    for name in ("r2", "pearson", "spearman"):
        assert np.isnan(found[name]).all(), name


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize(
    ("predictions", "labels", "undefined"),
    [
        ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], {"r2", "pearson", "spearman"}),
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], {"pearson", "spearman"}),
        ([0.7], [0.3], {"r2", "pearson", "spearman"}),
    ],
    ids=["labels do not vary", "predictions do not vary", "one example"],
)
def test_figures_are_null_when_undefined(predictions: list[float], labels: list[float], undefined: set[str]) -> None:
    headline = measure("regression", Outputs(labels=labels, predictions=predictions), resamples=20).headline
    assert {name for name, value in headline.items() if value is None} == undefined


def test_residuals_are_summed_up_and_counted() -> None:
    predictions_N, labels_N = numbers(500, seed=0)
    measured = measure("regression", Outputs(labels=labels_N, predictions=predictions_N), resamples=0)
    residuals_N = predictions_N - labels_N
    told = dict(measured.tables["residuals"].rows)
    assert told["mean"] == residuals_N.mean()
    assert told["median"] == np.median(residuals_N)
    assert told["5 %"] == np.quantile(residuals_N, 0.05)
    histogram = measured.tables["residual_histogram"].rows
    assert sum(row[2] for row in histogram) == 500
    assert (histogram[0][0], histogram[-1][1]) == (residuals_N.min(), residuals_N.max())


def test_points_are_a_sample_from_end_to_end_when_there_are_many() -> None:
    predictions_N, labels_N = numbers(5000, seed=0)
    measured = measure("regression", Outputs(labels=labels_N, predictions=predictions_N), resamples=0)
    (points,) = measured.curves["predicted_against_true"]
    assert len(points["x"]) == 1000
    assert (min(points["x"]), max(points["x"])) == (labels_N.min(), labels_N.max())
    by_label = dict(zip(labels_N.tolist(), predictions_N.tolist(), strict=True))
    assert [by_label[label] for label in points["x"]] == points["y"]


@pytest.mark.parametrize("deviation", [0.0, 4e-7])
def test_residuals_are_counted_when_they_differ_by_rounding_alone(deviation: float) -> None:
    predictions_N = np.array([0.1, 0.1, 0.1 + deviation])
    measured = measure("regression", Outputs(labels=np.full(3, 1.7e9), predictions=predictions_N), resamples=0)
    rows = measured.tables["residual_histogram"].rows
    assert sum(int(examples) for _, _, examples in rows if isinstance(examples, int)) == 3
