"""Measures of one label out of several classes, by scikit-learn's definitions.

A class that the examples lack: it is left out of macro averages where it was not predicted either, of balanced
accuracy, and of the mean of areas, whose own is null. With two classes the second is the positive one.

Legend: N examples, R draws, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm.metrics.calibration import Calibration
from llm.metrics.counted import (
    GroupSums,
    averages,
    averages_table,
    class_table,
    confusion_table,
    defined,
    defined_mean,
    figure,
    ratio,
)
from llm.metrics.inputs import FloatArray, IntArray, class_labels, class_names, class_probabilities
from llm.metrics.intervals import Statistic
from llm.metrics.measured import Cell, Table
from llm.metrics.measures import Measures, Outputs, point
from llm.metrics.ranking import Ranking, areas_of, curves_of

AVERAGES = ("precision_macro", "recall_macro", "f1_macro", "f1_weighted")
"""Of the headline. One label an example makes the micro averages and the weighted recall equal to accuracy."""

_RESAMPLED_AREAS = 20  # classes: half a second each at 10,000 examples and a thousand draws
_PAIRS = 20


def classification(outputs: Outputs, names: Sequence[str]) -> Measures:
    """Measures of `probabilities` (N, C) and `labels` (N,).

    Raises:
        MetricsError: the arrays do not go together.
    """
    classes = class_names(names, least=2)
    probabilities_NC = class_probabilities(outputs.probabilities, len(classes))
    labels_N = class_labels(outputs.labels, len(probabilities_NC), len(classes))
    positives_NC = labels_N[:, None] == np.arange(len(classes))
    areas = areas_of(probabilities_NC, positives_NC)
    ranked = _ranked(len(classes))
    few = len(classes) <= _RESAMPLED_AREAS
    return Measures(
        examples=len(labels_N),
        headline=_headline(probabilities_NC, labels_N, areas),
        drawn=classification_statistic(probabilities_NC, labels_N, areas=few),
        of_rows=lambda rows: classification_statistic(probabilities_NC[rows], labels_N[rows], areas=False),
        tables=_tables(probabilities_NC, labels_N, classes, areas),
        curves=curves_of(
            classes[ranked],
            probabilities_NC[:, ranked],
            positives_NC[:, ranked],
            {name: area_C[ranked] for name, area_C in areas.items()},
        ),
    )


def classification_statistic(probabilities_NC: FloatArray, labels_N: IntArray, *, areas: bool = True) -> Statistic:
    """The figures of draws, but for the calibration error.

    That one is biased upwards, the more the fewer distinct examples a draw has, so that its percentiles would lie
    beside the figure itself.

    Args:
        probabilities_NC: Rows sum to 1.
        labels_N: From 0 to C - 1.
        areas: Include the areas under curves, which take time and memory proportional to C.
    """
    classes = probabilities_NC.shape[1]
    predicted_N = probabilities_NC.argmax(axis=1)
    correct_N = predicted_N == labels_N
    by_label, by_prediction = GroupSums(labels_N, classes), GroupSums(predicted_N, classes)
    losses_N = log_losses(probabilities_NC, labels_N)
    ranked = range(classes)[_ranked(classes)] if areas else ()
    rankings = [Ranking(probabilities_NC[:, each], labels_N == each) for each in ranked]

    def figures(counts_NR: IntArray) -> dict[str, FloatArray]:
        weights_NR = counts_NR.astype(np.float64)
        drawn_R = weights_NR.sum(axis=0)
        support_CR, predicted_CR = by_label(weights_NR), by_prediction(weights_NR)
        right_CR = by_label(weights_NR * correct_N[:, None])
        averaged = averages(right_CR, predicted_CR, support_CR, absent_count=False)
        found = {
            "accuracy": ratio(right_CR.sum(axis=0), drawn_R),
            "balanced_accuracy": defined_mean(ratio(right_CR, support_CR, otherwise=np.nan)),
            **{name: averaged[name] for name in AVERAGES},
            "matthews_correlation": _matthews(right_CR, predicted_CR, support_CR),
            "log_loss": (losses_N @ weights_NR) / drawn_R,
        }
        if classes == 2:
            found["precision"] = ratio(right_CR[1], predicted_CR[1])
            found["recall"] = ratio(right_CR[1], support_CR[1])
            found["f1"] = ratio(2 * right_CR[1], predicted_CR[1] + support_CR[1])
        if rankings:
            roc, precision = zip(*(ranking.areas(counts_NR) for ranking in rankings), strict=True)
            found["roc_auc"] = defined_mean(np.stack(roc))
            found["average_precision"] = defined_mean(np.stack(precision))
        return found

    return figures


def log_losses(probabilities_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """-log of the label's probability in nats, clipped as scikit-learn does to stay finite. Shape: (N,)."""
    tiny = np.finfo(np.float64).eps
    chosen_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    losses_N: FloatArray = -np.log(np.clip(chosen_N, tiny, 1 - tiny))
    return losses_N


def _headline(
    probabilities_NC: FloatArray, labels_N: IntArray, areas: dict[str, FloatArray]
) -> dict[str, float | None]:
    statistic = classification_statistic(probabilities_NC, labels_N, areas=False)
    ranked = _ranked(probabilities_NC.shape[1])
    every_N1 = np.ones((len(labels_N), 1), dtype=np.int64)
    return {
        **point(statistic, len(labels_N)),
        **{name: figure(defined_mean(area_C[ranked])) for name, area_C in areas.items()},
        "calibration_error": figure(_calibration(probabilities_NC, labels_N).error(every_N1)[0]),
    }


def _calibration(probabilities_NC: FloatArray, labels_N: IntArray) -> Calibration:
    return Calibration(probabilities_NC.max(axis=1), probabilities_NC.argmax(axis=1) == labels_N)


def _ranked(classes: int) -> slice:
    """The classes whose areas make up the headline's: the positive one of two, each of more against the rest."""
    return slice(1, 2) if classes == 2 else slice(None)


def _matthews(right_CR: FloatArray, predicted_CR: FloatArray, support_CR: FloatArray) -> FloatArray:
    """Correlation of label and prediction (Gorodkin 2004), 0 where either is always the same, as in scikit-learn."""
    drawn_R = support_CR.sum(axis=0)
    together_R = right_CR.sum(axis=0) * drawn_R - (support_CR * predicted_CR).sum(axis=0)
    of_predictions_R, of_labels_R = (drawn_R**2 - (each**2).sum(axis=0) for each in (predicted_CR, support_CR))
    return ratio(together_R, np.sqrt(of_predictions_R * of_labels_R))


def _tables(
    probabilities_NC: FloatArray, labels_N: IntArray, names: tuple[str, ...], areas: dict[str, FloatArray]
) -> dict[str, Table]:
    classes = len(names)
    predicted_N = probabilities_NC.argmax(axis=1)
    right_N = predicted_N[predicted_N == labels_N]
    correct_C, predicted_C, support_C = (
        np.bincount(each, minlength=classes) for each in (right_N, predicted_N, labels_N)
    )
    counts = (correct_C, predicted_C, support_C)
    tables = {
        "classes": class_table(names, counts, {name: defined(area_C) for name, area_C in areas.items()}),
        "averages": averages_table(counts, absent_count=False),
        "calibration": _calibration(probabilities_NC, labels_N).table(),
        **confusion_table(labels_N, predicted_N, names),
    }
    if classes > 2:
        tables["confused"] = _confused(labels_N, predicted_N, support_C, names)
    return tables


def _confused(labels_N: IntArray, predicted_N: IntArray, support_C: IntArray, names: tuple[str, ...]) -> Table:
    """The commonest mistakes."""
    wrong_N = labels_N != predicted_N
    pairs, examples = np.unique(labels_N[wrong_N] * len(names) + predicted_N[wrong_N], return_counts=True)
    commonest = np.argsort(-examples, kind="stable")[:_PAIRS]
    rows: list[tuple[Cell, ...]] = []
    for pair, count in zip(pairs[commonest].tolist(), examples[commonest].tolist(), strict=True):
        label, predicted = divmod(pair, len(names))
        rows.append((names[label], names[predicted], count, count / int(support_C[label])))
    return Table(columns=("label", "predicted", "examples", "share_of_label"), rows=tuple(rows))
