"""How well scores order the examples: areas under the ROC and precision-recall curves, and the curves.

Legend: N examples, R draws, G groups of examples with one score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm.metrics.counted import ratio
from llm.metrics.inputs import FloatArray, IntArray
from llm.metrics.measured import Curve

CURVE_POINTS = 200
"""Of a curve in a report; areas are those of all points."""


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


def drawn_curves(name: str, scores_N: FloatArray, positives_N: IntArray) -> tuple[Curve, Curve] | None:
    """The ROC and the precision-recall curve, thinned; None where an area is undefined.

    Args:
        name: What the curves are of.
        scores_N: The larger, the likelier positive.
        positives_N: 0 or 1.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve  # a second or two, which readers of measures save

    positives = int(positives_N.sum())
    if not 0 < positives < len(positives_N):
        return None
    roc, average_precision = Ranking(scores_N, positives_N).areas(np.ones((len(scores_N), 1), dtype=np.int64))
    false_rate, true_rate, _ = roc_curve(positives_N, scores_N)
    precision, recall, _ = precision_recall_curve(positives_N, scores_N)
    base = positives / len(positives_N)
    return (
        {"name": name, **_thinned(false_rate, true_rate), "area": float(roc[0])},
        {"name": name, **_thinned(recall[::-1], precision[::-1]), "area": float(average_precision[0]), "base": base},
    )


def _thinned(x: FloatArray, y: FloatArray) -> dict[str, list[float]]:
    """Points at even distances along the curve, its ends among them."""
    if len(x) > CURVE_POINTS:
        length = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
        wanted = np.linspace(0, length[-1], CURVE_POINTS)
        places = np.unique(np.append(np.searchsorted(length, wanted[:-1]), [0, len(x) - 1]))
        x, y = x[places], y[places]
    return {"x": x.tolist(), "y": y.tolist()}
