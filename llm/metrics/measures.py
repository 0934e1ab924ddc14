"""What each task gets from `measure` and hands back: figures, what draws make of them, tables and curves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm.metrics.counted import figure
from llm.metrics.inputs import IntArray
from llm.metrics.intervals import Statistic
from llm.metrics.measured import Curve, Table


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a model said of some examples, and what is true of them, in one order."""

    labels: Any
    """Class indices (N,); 0 or 1 (N, L) where an example has several labels; numbers (N,); tag indices (K,)."""
    probabilities: Any = None
    """float64 or float32, (N, C) or (N, L); for classification."""
    predictions: Any = None
    """Numbers (N,) for regression; tag indices (K,) for token classification."""
    lengths: Any = None
    """Labelled tokens of each example, N of them with sum K; for token classification."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What can be measured of some outputs."""

    examples: int
    """N."""
    headline: dict[str, float | None]
    """Every figure, null where undefined."""
    drawn: Statistic
    """The figures that have intervals."""
    of_rows: Callable[[IntArray], Statistic]
    """The figures of the examples with these indices, but for areas under curves, which cost the most."""
    tables: dict[str, Table] = field(default_factory=dict)
    """By name."""
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    """By name."""


def point(statistic: Statistic, examples: int) -> dict[str, float | None]:
    """The figures of the examples as they are, null where undefined."""
    found = statistic(np.ones((examples, 1), dtype=np.int64))
    return {name: figure(values[0]) for name, values in found.items()}
