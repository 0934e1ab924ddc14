"""How well scores order the examples: areas under the ROC and precision-recall curves, and the curves.

Legend: N examples, R draws, G groups of examples with one score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llm.metrics.counted import ratio
from llm.metrics.inputs import FloatArray, IntArray
from llm.metrics.measured import Curve

CURVE_POINTS = 200
"""Of a curve in a report; areas are those of all points."""
_DRAWN_CURVES = 10


class Ranking:
    """The areas of one score, for many bootstrap draws at once.

    Args:
        scores_N: The larger, the likelier positive.
        positives_N: 1 or true for what should be ranked high.
    """

    def __init__(self, scores_N: FloatArray, positives_N: IntArray | NDArray[np.bool_]) -> None:
        self._order = np.argsort(-scores_N, kind="stable")
        ordered_N = scores_N[self._order]
        self._starts = np.flatnonzero(np.append(True, ordered_N[1:] != ordered_N[:-1]))
        self._positive_N1 = positives_N[self._order].astype(np.int64)[:, None]

    def areas(self, counts_NR: IntArray) -> tuple[FloatArray, FloatArray]:
        """Area under the ROC curve by trapezoids, and average precision, as in scikit-learn. Shape: (R,) each.

        The first is NaN without positives or without negatives, the second without positives.
        """
        ordered_NR = counts_NR[self._order]
        true_GR = np.add.reduceat(ordered_NR * self._positive_N1, self._starts, axis=0).cumsum(axis=0)
        all_GR = np.add.reduceat(ordered_NR, self._starts, axis=0).cumsum(axis=0)
        false_GR = all_GR - true_GR
        true_steps_GR, false_steps_GR = (np.diff(sums_GR, axis=0, prepend=0) for sums_GR in (true_GR, false_GR))
        positives_R, negatives_R = true_GR[-1], false_GR[-1]
        # In whole numbers until the last division, so that ties and order cannot round.
        doubled_R = (false_steps_GR * (2 * true_GR - true_steps_GR)).sum(axis=0)
        roc_R = ratio(doubled_R, 2 * positives_R * negatives_R, otherwise=np.nan)
        precision_R = (true_steps_GR * ratio(true_GR, all_GR)).sum(axis=0)
        return roc_R, ratio(precision_R, positives_R, otherwise=np.nan)


def areas_of(scores_NK: FloatArray, positives_NK: IntArray | NDArray[np.bool_]) -> dict[str, FloatArray]:
    """Both areas of each column of scores, one column after the other: a thousand classes are sorted, not held sorted.

    Returns:
        `roc_auc` and `average_precision`. Shape: (K,) each.
    """
    every_N1 = np.ones((len(scores_NK), 1), dtype=np.int64)
    pairs = [Ranking(*column).areas(every_N1) for column in zip(scores_NK.T, positives_NK.T, strict=True)]
    roc, precision = (np.concatenate(areas) for areas in zip(*pairs, strict=True))
    return {"roc_auc": roc, "average_precision": precision}


def curves_of(
    names: Sequence[str],
    scores_NK: FloatArray,
    positives_NK: IntArray | NDArray[np.bool_],
    areas: Mapping[str, FloatArray],
) -> dict[str, list[Curve]]:
    """The curves of the ten columns with most positives, without those whose areas are undefined.

    Args:
        names: Of the columns.
        scores_NK: The larger, the likelier positive.
        positives_NK: 0 or 1.
        areas: As `areas_of` gives them.

    Returns:
        `roc`: false against true positive rate; `precision_recall`: recall against precision, with the share of
        positives as `base`. At most 201 points each.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve  # a second or two, which readers of measures save

    found: dict[str, list[Curve]] = {"roc": [], "precision_recall": []}
    for each in np.sort(np.argsort(-positives_NK.sum(axis=0), kind="stable")[:_DRAWN_CURVES]).tolist():
        roc, average_precision = (float(areas[name][each]) for name in ("roc_auc", "average_precision"))
        if np.isnan(roc):
            continue
        base = float(positives_NK[:, each].mean())
        false_rate, true_rate, _ = roc_curve(positives_NK[:, each], scores_NK[:, each])
        precision, recall, _ = precision_recall_curve(positives_NK[:, each], scores_NK[:, each])
        line = {**_thinned(recall[::-1], precision[::-1]), "area": average_precision, "base": base}
        found["roc"].append({"name": names[each], **_thinned(false_rate, true_rate), "area": roc})
        found["precision_recall"].append({"name": names[each], **line})
    return found


def _thinned(x: FloatArray, y: FloatArray) -> dict[str, list[float]]:
    """Points at even distances along the curve, its ends among them."""
    if len(x) > CURVE_POINTS:
        length = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
        wanted = np.linspace(0, length[-1], CURVE_POINTS)
        places = np.unique(np.append(np.searchsorted(length, wanted[:-1]), [0, len(x) - 1]))
        x, y = x[places], y[places]
    return {"x": x.tolist(), "y": y.tolist()}
