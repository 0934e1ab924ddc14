"""Measures of labels of which an example may have several or none, by scikit-learn's definitions.

A label is predicted where its probability is above one half, as two classes would decide. A label that the examples
lack has no area; the mean of areas is over the others.

Legend: N examples, R draws, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm.metrics.counted import averages, averages_table, class_table, defined, defined_mean, figure
from llm.metrics.inputs import FloatArray, IntArray, class_names, label_matrix, label_probabilities
from llm.metrics.intervals import Statistic
from llm.metrics.measured import Table
from llm.metrics.measures import Measures, Outputs, point
from llm.metrics.ranking import Ranking, areas_of, curves_of

THRESHOLD = 0.5
AVERAGES = ("precision_micro", "recall_micro", "f1_micro", "f1_macro", "f1_weighted")
"""Of the headline."""

_RESAMPLED_AREAS = 20  # labels: half a second each at 10,000 examples and a thousand draws


def multi_label(outputs: Outputs, names: Sequence[str]) -> Measures:
    """Measures of `probabilities` (N, L) and `labels` (N, L).

    Raises:
        MetricsError: the arrays do not go together.
    """
    label_names = class_names(names, least=1, what="label")
    probabilities_NL = label_probabilities(outputs.probabilities, len(label_names))
    labels_NL = label_matrix(outputs.labels, *probabilities_NL.shape)
    areas = areas_of(probabilities_NL, labels_NL)
    few = len(label_names) <= _RESAMPLED_AREAS
    return Measures(
        examples=len(labels_NL),
        headline={
            **point(multi_label_statistic(probabilities_NL, labels_NL, areas=False), len(labels_NL)),
            "roc_auc": figure(defined_mean(areas["roc_auc"])),
            "mean_average_precision": figure(defined_mean(areas["average_precision"])),
        },
        drawn=multi_label_statistic(probabilities_NL, labels_NL, areas=few),
        of_rows=lambda rows: multi_label_statistic(probabilities_NL[rows], labels_NL[rows], areas=False),
        tables=_tables(probabilities_NL, labels_NL, label_names, areas),
        curves=curves_of(label_names, probabilities_NL, labels_NL, areas),
    )


def multi_label_statistic(probabilities_NL: FloatArray, labels_NL: IntArray, *, areas: bool = True) -> Statistic:
    """The figures of draws.

    Args:
        probabilities_NL: From 0 to 1.
        labels_NL: 0 or 1.
        areas: Include the areas under curves, which take time and memory proportional to L.
    """
    predicted_NL = (probabilities_NL > THRESHOLD).astype(np.int64)
    right_NL = predicted_NL & labels_NL
    whole_N = (predicted_NL == labels_NL).all(axis=1).astype(np.float64)
    wrong_N = (predicted_NL != labels_NL).mean(axis=1)
    losses_N = _log_losses(probabilities_NL, labels_NL)
    rankings = [Ranking(*column) for column in zip(probabilities_NL.T, labels_NL.T, strict=True)] if areas else []
    # Products of float64, which BLAS multiplies; whole numbers up to 2^53 stay exact.
    tallies = [each_NL.T.astype(np.float64) for each_NL in (right_NL, predicted_NL, labels_NL)]

    def figures(counts_NR: IntArray) -> dict[str, FloatArray]:
        weights_NR = counts_NR.astype(np.float64)
        drawn_R = weights_NR.sum(axis=0)
        averaged = averages(*(tally_LN @ weights_NR for tally_LN in tallies), absent_count=True)
        found = {
            "subset_accuracy": (whole_N @ weights_NR) / drawn_R,
            "hamming_loss": (wrong_N @ weights_NR) / drawn_R,
            **{name: averaged[name] for name in AVERAGES},
            "log_loss": (losses_N @ weights_NR) / drawn_R,
        }
        if rankings:
            roc, precision = zip(*(ranking.areas(counts_NR) for ranking in rankings), strict=True)
            found["roc_auc"] = defined_mean(np.stack(roc))
            found["mean_average_precision"] = defined_mean(np.stack(precision))
        return found

    return figures


def _log_losses(probabilities_NL: FloatArray, labels_NL: IntArray) -> FloatArray:
    """Mean over labels of -log of the probability of what is true, in nats, clipped to stay finite. Shape: (N,)."""
    tiny = np.finfo(np.float64).eps
    true_NL = np.where(labels_NL == 1, probabilities_NL, 1 - probabilities_NL)
    losses_N: FloatArray = -np.log(np.clip(true_NL, tiny, 1 - tiny)).mean(axis=1)
    return losses_N


def _tables(
    probabilities_NL: FloatArray, labels_NL: IntArray, names: tuple[str, ...], areas: dict[str, FloatArray]
) -> dict[str, Table]:
    predicted_NL = (probabilities_NL > THRESHOLD).astype(np.int64)
    counts = ((predicted_NL & labels_NL).sum(axis=0), predicted_NL.sum(axis=0), labels_NL.sum(axis=0))
    further = {name: defined(area_L) for name, area_L in areas.items()}
    return {
        "classes": class_table(names, counts, further, heading="label"),
        "averages": averages_table(counts, absent_count=True),
    }
