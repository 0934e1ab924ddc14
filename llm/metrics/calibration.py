"""Whether a model that says 80 % is right in 80 % of the cases (Guo et al. 2017, arXiv:1706.04599).

Expected calibration error: examples are put into 15 bins of equal width by the probability of the class predicted, its
confidence, ((m - 1) / 15, m / 15]; |accuracy - mean confidence| of each bin, weighted by its examples.

Legend: N examples, R draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm.metrics.counted import GroupSums
from llm.metrics.inputs import FloatArray, IntArray
from llm.metrics.measured import Table

BINS = 15
"""As in the paper's tables."""
_EDGES = np.linspace(0, 1, BINS + 1)


class Calibration:
    """The error, for many bootstrap draws at once.

    Args:
        confidences_N: Probability of the class predicted.
        correct_N: Whether it is the label.
    """

    def __init__(self, confidences_N: FloatArray, correct_N: NDArray[np.bool_]) -> None:
        self._bins_N = np.maximum(np.searchsorted(_EDGES, confidences_N) - 1, 0)
        self._confidences_N, self._correct_N = confidences_N, correct_N
        self._sums = GroupSums(self._bins_N, BINS)

    def error(self, counts_NR: IntArray) -> FloatArray:
        """Expected calibration error. Shape: (R,)."""
        gaps = self._sums(counts_NR * (self._confidences_N - self._correct_N)[:, None])
        found: FloatArray = np.abs(gaps).sum(axis=0) / counts_NR.sum(axis=0)
        return found

    def table(self) -> Table:
        """The bins that have examples."""
        rows = []
        for place in np.unique(self._bins_N).tolist():
            inside_N = self._bins_N == place
            rows.append(
                (
                    f"{_EDGES[place]:.3f} to {_EDGES[place + 1]:.3f}",
                    int(inside_N.sum()),
                    float(self._confidences_N[inside_N].mean()),
                    float(self._correct_N[inside_N].mean()),
                )
            )
        return Table(columns=("confidence", "examples", "mean_confidence", "accuracy"), rows=tuple(rows))
