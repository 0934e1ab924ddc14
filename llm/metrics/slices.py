"""A figure by groups of the examples, and the largest gap between two of them.

Legend: N examples, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llm.errors import MetricsError
from llm.metrics.inputs import FloatArray, IntArray
from llm.metrics.intervals import Interval, Statistic, ends, resampled
from llm.metrics.measured import Cell, Table
from llm.metrics.measures import point

LEAST_EXAMPLES = 10
"""Of a group that takes part in the largest gap: a handful of examples is at an end of the scale by chance."""
_MOST_GROUPS = 100


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The examples of one group."""

    group: str
    examples: int
    value: float | None
    """Of the figure; null where undefined."""
    interval: Interval | None
    """Null without draws, or where too few of them define the figure."""
    drawn: FloatArray | None
    """The figure of each draw from the group. Shape: (R,)."""


def slices_of(
    groups: Sequence[str], of_rows: Callable[[IntArray], Statistic], name: str, *, resamples: int, seed: int = 0
) -> list[Slice]:
    """Measure every group by itself.

    Args:
        groups: The group of each example. Shape: (N,).
        of_rows: The figures of the examples with some indices.
        name: Of the figure.
        resamples: Draws from each group; 0 for no intervals.
        seed: Of the draws.

    Returns:
        Sorted by name.

    Raises:
        MetricsError: More than a hundred groups.
    """
    names, group_N = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    if len(names) > _MOST_GROUPS:
        raise MetricsError(
            f"a column of groups has {len(names)} values, {str(names[0])!r} among them: a table compares at most "
            f"{_MOST_GROUPS}. Put the examples into fewer groups."
        )
    return [
        _slice(str(group), np.flatnonzero(group_N == place), of_rows, name, resamples, seed + place)
        for place, group in enumerate(names)
    ]


def slice_table(slices: Sequence[Slice], name: str) -> Table:
    """A row a group."""
    rows: list[tuple[Cell, ...]] = []
    for each in slices:
        low, high = each.interval or (None, None)
        rows.append((each.group, each.examples, each.value, low, high))
    return Table(columns=("group", "examples", name, "low", "high"), rows=tuple(rows))


def largest_gap(column: str, slices: Sequence[Slice]) -> tuple[Cell, ...] | None:
    """The two groups that differ most: column, higher group, lower group, gap, and the ends of its interval.

    Groups of fewer than ten examples take no part. The two are chosen after looking, so with many groups the interval
    is narrower than the truth: a gap that it bounds away from 0 is a reason to look, not a proof.
    """
    known = [(each.value, each) for each in slices if each.value is not None and each.examples >= LEAST_EXAMPLES]
    if len(known) < 2:
        return None
    (low, below), *_, (high, above) = sorted(known, key=lambda pair: pair[0])
    bounds: tuple[float | None, float | None] = (None, None)
    if above.drawn is not None and below.drawn is not None:
        bounds = ends({"gap": above.drawn - below.drawn}).get("gap", bounds)
    return (column, above.group, below.group, high - low, *bounds)


def gap_table(gaps: Sequence[tuple[Cell, ...]]) -> Table:
    """A row a column of groups."""
    return Table(columns=("column", "highest", "lowest", "gap", "low", "high"), rows=tuple(gaps))


def _slice(
    group: str, rows: IntArray, of_rows: Callable[[IntArray], Statistic], name: str, resamples: int, seed: int
) -> Slice:
    statistic = of_rows(rows)
    drawn_R = resampled(statistic, len(rows), resamples=resamples, seed=seed)[name] if resamples else None
    value = point(statistic, len(rows))[name]
    interval = None if drawn_R is None or value is None else ends({name: drawn_R}).get(name)
    return Slice(group=group, examples=len(rows), value=value, interval=interval, drawn=drawn_R)
