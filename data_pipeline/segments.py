"""Stretches of the order with fixed mixture weights, and where they break.

Within a *segment*, a period of 4,096 sequences is divided among the sources by integer quotas, and a keyed permutation
of the period says which source each place takes. Stages and exhausted sources end segments; these breaks are computed
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.config import StageConfig
from data_pipeline.errors import OrderError
from data_pipeline.permutation import derive_key, permute

Int64Array = npt.NDArray[np.int64]

PERIOD = 4096
"""Sequences over which the mixture is exact."""


@dataclass(frozen=True, kw_only=True)
class SourceRows:
    """A source as the order sees it."""

    key: str
    """Identity of its content; keys the permutation of its rows."""
    rows: int
    """Sequences in one epoch."""
    weight: float
    """Share of sequences, relative to the other sources."""
    max_epochs: int | None = None
    """Epochs after which it is exhausted."""

    @property
    def limit(self) -> int | None:
        """Rows that it can give in all."""
        return None if self.max_epochs is None else self.rows * self.max_epochs


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A stretch of the order with one mixture."""

    start: int
    """Its first logical index."""
    length: int | None
    """Sequences; None is without end."""
    quotas: Int64Array
    """Sequences of each source in a period."""
    first_ordinals: Int64Array
    """Rows that each source gave before."""
    source_of: Int64Array
    """Source at each place of the period. Shape: (PERIOD,)."""
    rank_of: Int64Array
    """How many places before it in the period are of the same source. Shape: (PERIOD,)."""

    def consumed(self, count: int) -> Int64Array:
        """Returns the ordinals that the sources have reached after `count` sequences of this segment."""
        periods, rest = divmod(count, PERIOD)
        partial = np.bincount(self.source_of[:rest], minlength=len(self.quotas))
        return self.first_ordinals + periods * self.quotas + partial

    def runs_out(self, source: int, remaining: int) -> int | None:
        """Returns the place at which a source would be asked for one row more than the `remaining` ones."""
        quota = int(self.quotas[source])
        if quota == 0:
            return None
        periods, rank = divmod(remaining, quota)
        return periods * PERIOD + int(np.flatnonzero(self.source_of == source)[rank])


def quotas_of(weights: Sequence[float]) -> Int64Array:
    """Divides a period among weights by largest remainder.

    Args:
        weights: None negative, one positive.

    Returns:
        Whole numbers that add up to PERIOD.

    Raises:
        OrderError: A positive weight is too small to get a place.
    """
    total = float(sum(weights))
    shares = [weight / total * PERIOD for weight in weights]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda index: (quotas[index] - shares[index], index))
    for index in by_remainder[: PERIOD - sum(quotas)]:
        quotas[index] += 1
    for index, weight in enumerate(weights):
        if weight > 0 and quotas[index] == 0:
            smallest = (total - weight) / (PERIOD - 1)
            raise OrderError(
                f"Weight {weight:g} of dataset {index} (of weights {[float(f'{w:g}') for w in weights]}) "
                f"is less than one sequence in {PERIOD}, so it would never be read. Give it a weight of at least "
                f"{smallest:g}, or leave it out."
            )
    return np.array(quotas, dtype=np.int64)


def build_segments(sources: Sequence[SourceRows], stages: Sequence[StageConfig], seed: int) -> tuple[Segment, ...]:
    """Computes the breaks of the order.

    Raises:
        OrderError: A weight is too small, or a stage names only datasets that are exhausted by then.
    """
    plan: list[tuple[int | None, Sequence[float]]] = [(stage.sequences, stage.weights) for stage in stages]
    plan.append((None, [source.weight for source in sources]))
    segments: list[Segment] = []
    start, ordinals = 0, np.zeros(len(sources), dtype=np.int64)
    for number, (length, weights) in enumerate(plan):
        remaining = length
        while remaining is None or remaining > 0:
            live = _live_weights(sources, weights, ordinals)
            if not sum(live) > 0:
                if remaining is None:
                    return tuple(segments)
                raise OrderError(
                    f"stages[{number}] still wants {remaining} sequences, but the datasets that it gives weight to are "
                    "exhausted by then. Shorten the stage, raise max_epochs, or give weight to another dataset."
                )
            segment = _segment(start, live, ordinals, derive_key(seed, "mixture", len(segments)))
            segment = _shortened(segment, sources, remaining)
            segments.append(segment)
            if segment.length is None:
                return tuple(segments)
            start, ordinals = start + segment.length, segment.consumed(segment.length)
            remaining = None if remaining is None else remaining - segment.length
    return tuple(segments)


def _live_weights(sources: Sequence[SourceRows], weights: Sequence[float], ordinals: Int64Array) -> list[float]:
    """Sets the weights of exhausted sources to 0."""
    return [
        0.0 if source.limit is not None and ordinal >= source.limit else weight
        for source, weight, ordinal in zip(sources, weights, ordinals.tolist(), strict=True)
    ]


def _segment(start: int, weights: Sequence[float], ordinals: Int64Array, key: bytes) -> Segment:
    quotas = quotas_of(weights)
    grouped = np.repeat(np.arange(len(weights), dtype=np.int64), quotas)
    source_of = grouped[permute(np.arange(PERIOD, dtype=np.int64), PERIOD, key)]
    rank_of = np.empty(PERIOD, dtype=np.int64)
    for source, quota in enumerate(quotas.tolist()):
        rank_of[source_of == source] = np.arange(quota)
    return Segment(
        start=start, length=None, quotas=quotas, first_ordinals=ordinals, source_of=source_of, rank_of=rank_of
    )


def _shortened(segment: Segment, sources: Sequence[SourceRows], remaining: int | None) -> Segment:
    """Ends a segment with its stage, or before a source would be asked for a row that it does not have."""
    ends = [] if remaining is None else [remaining]
    for number, source in enumerate(sources):
        if source.limit is not None:
            end = segment.runs_out(number, source.limit - int(segment.first_ordinals[number]))
            ends += [] if end is None else [end]
    return Segment(**{**vars(segment), "length": min(ends, default=None)})
