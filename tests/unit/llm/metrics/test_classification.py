"""Every figure of classes against scikit-learn, for the examples as they are and for draws of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from llm.metrics import Outputs, measure
from llm.metrics.classification import _tables, classification_statistic
from llm.metrics.intervals import draws

TOLERANCE = 1e-12
"""Sums of up to a hundred float64 in another order."""
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Make = Callable[..., tuple[FloatArray, IntArray]]
Reference = Callable[..., Any]
NAMES = ("red", "green", "blue", "grey", "pink")

shapes = st.fixed_dictionaries(
    {
        "examples": st.integers(1, 40),
        "classes": st.integers(2, 5),
        "seed": st.integers(0, 2**31),
        "decimals": st.sampled_from([0, 1, 12]),
        "present": st.integers(1, 2),
    }
)


def areas(call: Reference, function: Callable[..., float], probabilities_NC: FloatArray, labels_N: IntArray) -> float:
    """One against the rest, over the classes where that is defined; of two classes the second."""
    ranked = [1] if probabilities_NC.shape[1] == 2 else range(probabilities_NC.shape[1])
    lacks_negatives = function is sklearn.roc_auc_score
    found = [
        call(function, labels_N == each, probabilities_NC[:, each])
        for each in ranked
        if (labels_N == each).any() and not (lacks_negatives and (labels_N == each).all())
    ]
    return float(np.mean(found)) if found else np.nan


def expected(call: Reference, probabilities_NC: FloatArray, labels_N: IntArray) -> dict[str, float]:
    """The headline by scikit-learn."""
    predicted_N = probabilities_NC.argmax(axis=1)
    pair = (labels_N, predicted_N)
    found = {
        "accuracy": call(sklearn.accuracy_score, *pair),
        "balanced_accuracy": call(sklearn.balanced_accuracy_score, *pair),
        "precision_macro": call(sklearn.precision_score, *pair, average="macro"),
        "recall_macro": call(sklearn.recall_score, *pair, average="macro"),
        "f1_macro": call(sklearn.f1_score, *pair, average="macro"),
        "f1_weighted": call(sklearn.f1_score, *pair, average="weighted"),
        "matthews_correlation": call(sklearn.matthews_corrcoef, *pair),
        "log_loss": call(sklearn.log_loss, labels_N, probabilities_NC, labels=range(probabilities_NC.shape[1])),
        "roc_auc": areas(call, sklearn.roc_auc_score, probabilities_NC, labels_N),
        "average_precision": areas(call, sklearn.average_precision_score, probabilities_NC, labels_N),
    }
    if probabilities_NC.shape[1] == 2:
        for name in ("precision", "recall", "f1"):
            found[name] = call(getattr(sklearn, f"{name}_score"), *pair)
    return found


@given(shape=shapes)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_figures_equal_scikit_learn_when_classes_are_absent_or_scores_tie(
    classes: Make, reference: Reference, shape: dict[str, int]
) -> None:
    probabilities_NC, labels_N = classes(**shape)
    every_N1 = np.ones((len(labels_N), 1), dtype=np.int64)
    found = classification_statistic(probabilities_NC, labels_N)(every_N1)
    wanted = expected(reference, probabilities_NC, labels_N)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], [value], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("count", [2, 4])
def test_figures_of_draws_equal_scikit_learn_on_the_examples_drawn(
    classes: Make, reference: Reference, count: int
) -> None:
    probabilities_NC, labels_N = classes(12, count, decimals=1)
    (counts_NR,) = draws(12, 25, seed=3)
    found = classification_statistic(probabilities_NC, labels_N)(counts_NR)
    for draw, counts_N in enumerate(counts_NR.T):
        rows = np.repeat(np.arange(12), counts_N)
        wanted = expected(reference, probabilities_NC[rows], labels_N[rows])
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name][draw], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("count", [2, 4])
def test_headline_has_the_areas_of_scikit_learn_and_the_figures_that_are_drawn(
    classes: Make, reference: Reference, count: int
) -> None:
    probabilities_NC, labels_N = classes(50, count)
    outputs = Outputs(labels=labels_N, probabilities=probabilities_NC)
    headline = measure("sequence_classification", outputs, names=NAMES[:count], resamples=0).headline
    scores = probabilities_NC[:, 1] if count == 2 else probabilities_NC
    wanted = reference(sklearn.roc_auc_score, labels_N, scores, multi_class="ovr", average="macro")
    assert headline["roc_auc"] == pytest.approx(wanted, rel=TOLERANCE)
    drawn = classification_statistic(probabilities_NC, labels_N)(np.ones((50, 1), dtype=np.int64))
    assert {name: float(values[0]) for name, values in drawn.items()} | {
        "calibration_error": headline["calibration_error"]
    } == pytest.approx(headline, rel=TOLERANCE)


def test_tables_equal_scikit_learn_when_all_classes_are_present(classes: Make, reference: Reference) -> None:
    probabilities_NC, labels_N = classes(60, 3)
    pair = (labels_N, probabilities_NC.argmax(axis=1))
    tables = measure(
        "sequence_classification",
        Outputs(labels=labels_N, probabilities=probabilities_NC),
        names=NAMES[:3],
        resamples=0,
    ).tables
    precision, recall, f1, support = reference(sklearn.precision_recall_fscore_support, *pair)
    rows = tables["classes"].rows
    assert tables["classes"].columns[:6] == ("class", "support", "predicted", "precision", "recall", "f1")
    assert [row[0] for row in rows] == ["red", "green", "blue"]
    assert [row[1] for row in rows] == support.tolist()
    np.testing.assert_allclose([row[3:6] for row in rows], np.transpose([precision, recall, f1]), rtol=TOLERANCE)
    assert [list(row[1:]) for row in tables["confusion"].rows] == sklearn.confusion_matrix(*pair).tolist()
    for row in tables["averages"].rows:
        wanted = reference(sklearn.precision_recall_fscore_support, *pair, average=row[0])[:3]
        np.testing.assert_allclose(row[1:], wanted, rtol=TOLERANCE)


def test_areas_are_null_and_nothing_warns_when_only_one_class_is_labelled(classes: Make, reference: Reference) -> None:
    probabilities_NC, _ = classes(20, 3)
    measured = measure(
        "sequence_classification",
        Outputs(labels=np.zeros(20, dtype=int), probabilities=probabilities_NC),
        names=NAMES[:3],
        resamples=50,
    )
    assert measured.headline["roc_auc"] is None
    assert measured.headline["average_precision"] == 1.0
    assert "roc_auc" not in measured.intervals
    table = measured.tables["classes"]
    by_name = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert by_name["green"] | {"predicted": 0, "precision": 0.0} == {
        "class": "green", "support": 0, "predicted": 0, "precision": 0.0, "recall": None, "f1": 0.0,
        "roc_auc": None, "average_precision": None,
    }  # fmt: skip
    assert measured.curves == {"roc": [], "precision_recall": []}


def test_class_table_is_null_when_a_class_is_neither_true_nor_predicted() -> None:
    probabilities_NC = np.array([[0.8, 0.2, 0.0], [0.3, 0.7, 0.0]])
    measured = measure(
        "sequence_classification", Outputs(labels=[0, 1], probabilities=probabilities_NC), names=NAMES[:3], resamples=0
    )
    assert measured.tables["classes"].rows[2] == ("blue", 0, 0, None, None, None, None, None)
    assert measured.headline["f1_macro"] == 1.0


def test_log_loss_stays_finite_when_the_label_has_no_probability(reference: Reference) -> None:
    probabilities_NC = np.array([[1.0, 0.0], [0.0, 1.0]])
    headline = measure(
        "sequence_classification", Outputs(labels=[1, 1], probabilities=probabilities_NC), names=NAMES[:2], resamples=0
    ).headline
    wanted = reference(sklearn.log_loss, [1, 1], probabilities_NC, labels=[0, 1])
    assert headline["log_loss"] == pytest.approx(wanted, rel=TOLERANCE)


def test_commonest_mistakes_are_listed_when_classes_are_confused() -> None:
    labels_N = np.array([0, 0, 0, 0, 1, 1, 2])
    predicted_N = np.array([1, 1, 1, 0, 1, 2, 2])
    measured = measure(
        "sequence_classification", Outputs(labels=labels_N, probabilities=np.eye(3)[predicted_N]), names=NAMES[:3]
    )
    assert measured.tables["confused"].rows == (("red", "green", 3, 0.75), ("green", "blue", 1, 0.5))


def test_matrix_and_most_curves_are_left_out_when_classes_are_very_many(classes: Make) -> None:
    probabilities_NC, labels_N = classes(300, 60)
    measured = measure(
        "sequence_classification",
        Outputs(labels=labels_N, probabilities=probabilities_NC),
        names=[f"class {place}" for place in range(60)],
        resamples=20,
    )
    assert "confusion" not in measured.tables
    assert len(measured.tables["classes"].rows) == 60
    assert len(measured.curves["roc"]) == 10
    assert measured.headline["roc_auc"] is not None
    assert "roc_auc" not in measured.intervals


def test_tables_need_no_matrix_of_all_pairs_when_classes_are_very_many() -> None:
    classes = 50_000  # whose matrix would be 20 GB
    labels_N = np.array([0, 1, 2, 2])
    probabilities_NC = np.zeros((4, classes))
    probabilities_NC[np.arange(4), [0, 2, 1, 1]] = 1
    tracemalloc.start()
    tables = _tables(probabilities_NC, labels_N, tuple(map(str, range(classes))), areas={})
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100 * 2**20
    assert tables["confused"].rows == (("2", "1", 2, 1.0), ("1", "2", 1, 1.0))
