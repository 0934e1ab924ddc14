"""How far a figure may be off because the examples are few: bootstrap percentile intervals.

Examples are drawn with replacement, as many as there are, and the figure is taken of each draw (Efron and Tibshirani
1993, "An Introduction to the Bootstrap", chapter 13). A draw is how often each example came up, so a figure is
computed for many draws at once from counts instead of from copies of the data.

Legend: N examples, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from llm.errors import MetricsError
from llm.metrics.inputs import FloatArray, IntArray

Interval = tuple[float, float]
"""Lower and upper end."""
Statistic = Callable[[IntArray], Mapping[str, FloatArray]]
"""From how often each example was drawn, (N, R), to figures by name, (R,), NaN where a draw leaves one undefined."""

RESAMPLES = 1000
CONFIDENCE = 0.95

_COUNTS_AT_ONCE = 2**18
"""Blocks of 2 MiB stay in the cache: ten times as fast as blocks of 32 MiB."""
_LEAST_AT_ONCE = 8  # draws, where the examples are so many that a block holds fewer
_LEAST_DEFINED = 0.9
"""Of the draws: with fewer the ends would describe only the lucky ones."""


def percentile_intervals(
    statistic: Statistic,
    examples: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Intervals of figures.

    Args:
        statistic: What is measured.
        examples: N.
        resamples: R; 1000 keep the ends' own error far below the interval's width.
        seed: The same seed, data and R give the same ends.
        confidence: The share of draws between the ends.

    Returns:
        By figure; those that fewer than nine tenths of the draws define are left out.
    """
    return ends(resampled(statistic, examples, resamples=resamples, seed=seed), confidence)


def resampled(
    statistic: Statistic, examples: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, FloatArray]:
    """Figures of each draw. Shape: (R,) each."""
    if examples < 1 or resamples < 1:
        raise MetricsError(
            f"intervals were asked of {examples} examples and {resamples} draws: both must be at least 1. "
            "Ask for no intervals (resamples=0) instead."
        )
    blocks = [statistic(counts_NR) for counts_NR in draws(examples, resamples, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def draws(examples: int, resamples: int, seed: int) -> Iterator[IntArray]:
    """How often each example comes up, some draws at a time, the same whatever their number. Shape: (N, R) each."""
    generator = np.random.default_rng(seed)
    at_once = min(resamples, max(_LEAST_AT_ONCE, _COUNTS_AT_ONCE // examples))
    for begin in range(0, resamples, at_once):
        width = min(at_once, resamples - begin)
        drawn_RN = generator.integers(examples, size=(width, examples))
        cells_RN = drawn_RN * width + np.arange(width)[:, None]
        yield np.bincount(cells_RN.ravel(), minlength=examples * width).reshape(examples, width)


def ends(values: Mapping[str, FloatArray], confidence: float = CONFIDENCE) -> dict[str, Interval]:
    """The percentiles between which the share `confidence` of the draws lies."""
    if not 0 < confidence < 1:
        raise MetricsError(f"confidence is {confidence}: it is a share of the draws, above 0 and under 1. Use 0.95.")
    found = {}
    for name, values_R in values.items():
        defined: NDArray[np.float64] = values_R[~np.isnan(values_R)]
        if len(defined) >= _LEAST_DEFINED * len(values_R):
            low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
            found[name] = (float(low), float(high))
    return found
