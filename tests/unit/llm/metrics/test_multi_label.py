"""Every figure of several labels against scikit-learn, for the examples as they are and for draws of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from llm.metrics import Outputs, measure
from llm.metrics.intervals import draws
from llm.metrics.multi_label import multi_label_statistic

TOLERANCE = 1e-12
"""Sums of up to a hundred float64 in another order."""
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Reference = Callable[..., Any]


def outputs(examples: int, labels: int, seed: int, rate: float, decimals: int) -> tuple[FloatArray, IntArray]:
    random = np.random.default_rng(seed)
    labels_NL = (random.random((examples, labels)) < rate).astype(np.int64)
    probabilities_NL = np.round(0.3 * labels_NL + 0.7 * random.random((examples, labels)), decimals)
    return probabilities_NL, labels_NL


def expected(call: Reference, probabilities_NL: FloatArray, labels_NL: IntArray) -> dict[str, float]:
    """The headline by scikit-learn."""
    pair = (labels_NL, (probabilities_NL > 0.5).astype(int))
    columns = range(labels_NL.shape[1])
    some = [each for each in columns if labels_NL[:, each].any()]
    both = [each for each in some if not labels_NL[:, each].all()]
    pairs = {each: (labels_NL[:, each], probabilities_NL[:, each]) for each in columns}
    losses = [call(sklearn.log_loss, *pairs[each], labels=[0, 1]) for each in columns]
    return {
        "subset_accuracy": call(sklearn.accuracy_score, *pair),
        "hamming_loss": call(sklearn.hamming_loss, *pair),
        "precision_micro": call(sklearn.precision_score, *pair, average="micro"),
        "recall_micro": call(sklearn.recall_score, *pair, average="micro"),
        "f1_micro": call(sklearn.f1_score, *pair, average="micro"),
        "f1_macro": call(sklearn.f1_score, *pair, average="macro"),
        "f1_weighted": call(sklearn.f1_score, *pair, average="weighted"),
        "log_loss": float(np.mean(losses)),
        "roc_auc": np.mean([call(sklearn.roc_auc_score, *pairs[each]) for each in both]) if both else np.nan,
        "mean_average_precision": (
            np.mean([call(sklearn.average_precision_score, *pairs[each]) for each in some]) if some else np.nan
        ),
    }


@given(
    examples=st.integers(1, 30),
    labels=st.integers(2, 4),  # scikit-learn takes a matrix of one column for classes
    seed=st.integers(0, 2**31),
    rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    decimals=st.sampled_from([1, 12]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_figures_equal_scikit_learn_when_labels_are_absent_or_scores_tie(
    reference: Reference, examples: int, labels: int, seed: int, rate: float, decimals: int
) -> None:
    probabilities_NL, labels_NL = outputs(examples, labels, seed, rate, decimals)
    found = measure(
        "multi_label_classification",
        Outputs(labels=labels_NL, probabilities=probabilities_NL),
        names=[f"label {place}" for place in range(labels)],
        resamples=0,
    ).headline
    wanted = expected(reference, probabilities_NL, labels_NL)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        if np.isnan(value):
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), name


def test_figures_of_draws_equal_scikit_learn_on_the_examples_drawn(reference: Reference) -> None:
    probabilities_NL, labels_NL = outputs(15, 3, seed=5, rate=0.3, decimals=1)
    (counts_NR,) = draws(15, 20, seed=3)
    found = multi_label_statistic(probabilities_NL, labels_NL)(counts_NR)
    for draw, counts_N in enumerate(counts_NR.T):
        rows = np.repeat(np.arange(15), counts_N)
        for name, value in expected(reference, probabilities_NL[rows], labels_NL[rows]).items():
            np.testing.assert_allclose(found[name][draw], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_label_table_and_averages_equal_scikit_learn(reference: Reference) -> None:
    probabilities_NL, labels_NL = outputs(50, 3, seed=1, rate=0.4, decimals=12)
    tables = measure(
        "multi_label_classification",
        Outputs(labels=labels_NL, probabilities=probabilities_NL),
        names=["joy", "fear", "anger"],
        resamples=0,
    ).tables
    pair = (labels_NL, (probabilities_NL > 0.5).astype(int))
    precision, recall, f1, support = reference(sklearn.precision_recall_fscore_support, *pair)
    rows = tables["classes"].rows
    assert [row[:2] for row in rows] == list(zip(["joy", "fear", "anger"], support.tolist(), strict=True))
    np.testing.assert_allclose([row[3:6] for row in rows], np.transpose([precision, recall, f1]), rtol=TOLERANCE)
    for row in tables["averages"].rows:
        wanted = reference(sklearn.precision_recall_fscore_support, *pair, average=row[0])[:3]
        np.testing.assert_allclose(row[1:], wanted, rtol=TOLERANCE)


@pytest.mark.usefixtures("reference")
def test_areas_are_null_when_no_example_has_the_label() -> None:
    probabilities_NL, labels_NL = outputs(30, 2, seed=1, rate=0.5, decimals=12)
    labels_NL[:, 1] = 0
    measured = measure(
        "multi_label_classification",
        Outputs(labels=labels_NL, probabilities=probabilities_NL),
        names=["joy", "fear"],
        resamples=20,
    )
    joy, fear = measured.tables["classes"].rows
    assert fear[-2:] == (None, None)
    assert (measured.headline["roc_auc"], measured.headline["mean_average_precision"]) == joy[-2:]
    assert [curve["name"] for curve in measured.curves["roc"]] == ["joy"]


def test_label_is_not_predicted_when_its_probability_is_one_half() -> None:
    outputs_N = Outputs(labels=[[0], [1]], probabilities=[[0.5], [0.6]])
    assert measure("multi_label_classification", outputs_N, names=["joy"], resamples=0).headline["subset_accuracy"] == 1
