"""Measures of numbers, by scikit-learn's definitions; correlations as in SciPy.

R2 and the correlations are null where they are undefined: where labels do not vary, for a correlation also where
predictions do not. (scikit-learn then puts 0 or 1 for R2.)

Legend: N examples, R draws, G groups of equal values.
"""

from __future__ import annotations

import numpy as np

from llm.metrics.counted import GroupSums, ratio
from llm.metrics.inputs import FloatArray, IntArray, real_values, same_length
from llm.metrics.intervals import Statistic
from llm.metrics.measured import Curve, Table
from llm.metrics.measures import Measures, Outputs, point

_NO_VARIANCE = 1e-12
"""Of the sum of squares: what is left of equal values when means are subtracted in float64."""
_POINTS = 1000
_HISTOGRAM_BINS = 30
_QUANTILES = {"smallest": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "largest": 1.0}


def regression(outputs: Outputs) -> Measures:
    """Measures of `predictions` (N,) and `labels` (N,).

    Raises:
        MetricsError: the arrays do not go together.
    """
    predictions_N, labels_N = real_values(outputs.predictions, "predictions"), real_values(outputs.labels, "labels")
    same_length(predictions_N, labels_N, "predictions and labels")
    statistic = regression_statistic(predictions_N, labels_N)
    return Measures(
        examples=len(labels_N),
        headline=point(statistic, len(labels_N)),
        drawn=statistic,
        of_rows=lambda rows: regression_statistic(predictions_N[rows], labels_N[rows]),
        tables=_residuals(predictions_N - labels_N),
        curves={"predicted_against_true": [_points(predictions_N, labels_N)]},
    )


def regression_statistic(predictions_N: FloatArray, labels_N: FloatArray) -> Statistic:
    """The figures of draws."""
    errors_N = predictions_N - labels_N
    # Around their means, so that the difference of two sums of squares keeps its digits.
    p_N, y_N = predictions_N - predictions_N.mean(), labels_N - labels_N.mean()
    moments = np.stack([errors_N**2, np.abs(errors_N), p_N, y_N, p_N * p_N, y_N * y_N, p_N * y_N])
    ranks = _Ranks(predictions_N), _Ranks(labels_N)

    def figures(counts_NR: IntArray) -> dict[str, FloatArray]:
        drawn_R = counts_NR.sum(axis=0).astype(np.float64)
        squared, absolute, p, y, pp, yy, py = moments @ counts_NR.astype(np.float64)
        of_labels = _sum_of_squares(y, yy, drawn_R)
        return {
            "mse": squared / drawn_R,
            "rmse": np.sqrt(squared / drawn_R),
            "mae": absolute / drawn_R,
            "r2": 1 - ratio(squared, of_labels, otherwise=np.nan),
            "pearson": _correlation(py - p * y / drawn_R, _sum_of_squares(p, pp, drawn_R), of_labels),
            "spearman": _rank_correlation(ranks[0].of(counts_NR), ranks[1].of(counts_NR), counts_NR),
        }

    return figures


class _Ranks:
    """Ranks among the examples of a draw, equal values sharing their mean rank."""

    def __init__(self, values_N: FloatArray) -> None:
        distinct_G, self._group_N = np.unique(values_N, return_inverse=True)
        self._sums = GroupSums(self._group_N, len(distinct_G))

    def of(self, counts_NR: IntArray) -> FloatArray:
        """Ranks less their mean. Shape: (N, R)."""
        here_GR = self._sums(counts_NR.astype(np.float64))
        last_GR = here_GR.cumsum(axis=0)
        ranks_GR: FloatArray = last_GR - (here_GR - 1) / 2 - (last_GR[-1] + 1) / 2
        return ranks_GR[self._group_N]


def _rank_correlation(p_NR: FloatArray, y_NR: FloatArray, counts_NR: IntArray) -> FloatArray:
    pp, yy, py = (
        (counts_NR * first * second).sum(axis=0) for first, second in ((p_NR, p_NR), (y_NR, y_NR), (p_NR, y_NR))
    )
    return _correlation(py, pp, yy)


def _correlation(together: FloatArray, of_first: FloatArray, of_second: FloatArray) -> FloatArray:
    return np.clip(ratio(together, np.sqrt(of_first) * np.sqrt(of_second), otherwise=np.nan), -1, 1)


def _sum_of_squares(sums_R: FloatArray, squares_R: FloatArray, drawn_R: FloatArray) -> FloatArray:
    """Around the draw's mean, 0 where its values are all the same."""
    found_R = squares_R - sums_R**2 / drawn_R
    return np.where(found_R > _NO_VARIANCE * squares_R, found_R, 0.0)


def _residuals(residuals_N: FloatArray) -> dict[str, Table]:
    """What predictions have too much."""
    summary: list[tuple[str, float]] = [("mean", float(residuals_N.mean())), ("deviation", float(residuals_N.std()))]
    quantiles = np.quantile(residuals_N, list(_QUANTILES.values())).tolist()
    summary += list(zip(_QUANTILES, quantiles, strict=True))
    low, high = float(residuals_N.min()), float(residuals_N.max())
    least = _HISTOGRAM_BINS * np.spacing(max(abs(low), abs(high)))  # narrower bins would have equal edges
    beyond = 0.0 if high - low > least else max(0.5, least)
    counts, edges = np.histogram(residuals_N, bins=_HISTOGRAM_BINS, range=(low - beyond, high + beyond))
    bins = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
    return {
        "residuals": Table(columns=("residual", "value"), rows=tuple(summary)),
        "residual_histogram": Table(columns=("from", "to", "examples"), rows=tuple(bins)),
    }


def _points(predictions_N: FloatArray, labels_N: FloatArray) -> Curve:
    """At most a thousand of the examples, at even distances among the sorted labels."""
    order = np.argsort(labels_N, kind="stable")
    places = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _POINTS)).astype(np.int64))]
    return {"name": "examples", "x": labels_N[places].tolist(), "y": predictions_N[places].tolist()}
