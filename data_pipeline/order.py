"""Which row of which source is sequence i: a pure function, with seeking in constant time.

A *segment* is a stretch of the order with fixed mixture weights. Within it, a period of 4,096 sequences is
divided among the sources by integer quotas; a keyed permutation of the period says which source each place
takes, and arithmetic gives the *ordinal*, the number of rows taken from that source before. Epoch and row
follow from the ordinal. Stages and exhausted sources end segments; these breaks are computed once.
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


@dataclass(frozen=True)
class Shuffle:
    """How far apart on disk two neighbours in the order may come from."""

    block_sequences: int = 1024
    """Rows of one block."""
    window_blocks: int | None = None
    """Blocks whose rows are mixed; None mixes all rows."""


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


class SequenceOrder:
    """The order of all training sequences.

    Args:
        sources: The sources, in their order.
        stages: Mixtures of the first stretches; after them the sources' own weights hold.
        seed: Keys every permutation.
        shuffle: Locality of the rows' order.
    """

    def __init__(
        self,
        sources: Sequence[SourceRows],
        *,
        seed: int,
        stages: Sequence[StageConfig] = (),
        shuffle: Shuffle | None = None,
    ) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        self.shuffle = shuffle or Shuffle()
        self.segments = build_segments(self.sources, stages, seed)
        self._starts = np.array([segment.start for segment in self.segments], dtype=np.int64)
        last = self.segments[-1]
        self.total_sequences: int | None = None if last.length is None else last.start + last.length
        """Sequences until every source is exhausted; None is without end."""

    def locate(self, logical: npt.ArrayLike) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Finds sequences.

        Args:
            logical: Logical indices. Shape: (B,).

        Returns:
            Source, row within it and epoch of each. Shape: (B,) each, int64.
        """
        wanted = np.asarray(logical, dtype=np.int64)
        source, ordinal = self.ordinals(wanted)
        rows = np.array([item.rows for item in self.sources], dtype=np.int64)[source]
        epoch, position = np.divmod(ordinal, rows)
        row = np.empty_like(position)
        for number in np.unique(source):
            mine = source == number
            row[mine] = self._rows(self.sources[number], position[mine], epoch[mine])
        return source, row, epoch

    def ordinals(self, logical: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Returns each sequence's source and its ordinal among that source's rows. Shape: (B,) each."""
        self._check(logical)
        which = np.searchsorted(self._starts, logical, side="right") - 1
        source, ordinal = np.empty_like(logical), np.empty_like(logical)
        for number in np.unique(which):
            mine = which == number
            segment = self.segments[number]
            periods, place = np.divmod(logical[mine] - segment.start, PERIOD)
            chosen = segment.source_of[place]
            source[mine] = chosen
            ordinal[mine] = segment.first_ordinals[chosen] + periods * segment.quotas[chosen] + segment.rank_of[place]
        return source, ordinal

    def consumed(self, position: int) -> Int64Array:
        """Returns how many rows each source has given before logical index `position`. Shape: (sources,)."""
        if self.total_sequences is not None:
            position = min(position, self.total_sequences)
        segment = self.segments[int(np.searchsorted(self._starts, position, side="right")) - 1]
        return segment.consumed(position - segment.start)

    def rows_at(self, source: int, ordinals: Int64Array) -> Int64Array:
        """Returns the rows of a source at ordinals. Shape: (B,)."""
        epoch, position = np.divmod(ordinals, self.sources[source].rows)
        return self._rows(self.sources[source], position, epoch)

    def _rows(self, source: SourceRows, position: Int64Array, epoch: Int64Array) -> Int64Array:
        row = np.empty_like(position)
        for number in np.unique(epoch).tolist():
            mine = epoch == number
            row[mine] = shuffled_rows(position[mine], source.rows, self.shuffle, (self.seed, source.key, number))
        return row

    def _check(self, logical: Int64Array) -> None:
        if logical.size == 0:
            return
        first, last = int(logical.min()), int(logical.max())
        if first < 0 or (self.total_sequences is not None and last >= self.total_sequences):
            raise OrderError(
                f"Sequence {first if first < 0 else last} was asked for, but the data ends after "
                f"{self.total_sequences} sequences. Train fewer steps, or raise max_epochs of a dataset."
            )


def shuffled_rows(positions: Int64Array, rows: int, shuffle: Shuffle, key: tuple[int, str, int]) -> Int64Array:
    """Permutes one epoch of a source: all rows at once, or blocks, and then rows within windows of blocks.

    Args:
        positions: Places in the epoch. Shape: (B,).
        rows: Rows of the source.
        shuffle: Sizes of block and window.
        key: Seed, key of the source, epoch.

    Returns:
        Rows. Shape: (B,).
    """
    seed, name, epoch = key
    if shuffle.window_blocks is None:
        return permute(positions, rows, derive_key(seed, "rows", name, epoch))
    # The last block may be partial: permute whole blocks, and send what falls behind the end through again.
    result = _two_level(positions, rows, shuffle, key)
    outside = result >= rows
    while outside.any():
        result[outside] = _two_level(result[outside], rows, shuffle, key)
        outside = result >= rows
    return result


def _two_level(positions: Int64Array, rows: int, shuffle: Shuffle, key: tuple[int, str, int]) -> Int64Array:
    seed, name, epoch = key
    size = shuffle.block_sequences
    blocks = -(-rows // size)
    window_rows = min(shuffle.window_blocks or blocks, blocks) * size
    windows, inner = np.divmod(positions, window_rows)
    mixed = np.empty_like(positions)
    for window in np.unique(windows).tolist():
        mine = windows == window
        length = min(window_rows, blocks * size - window * window_rows)
        mixed[mine] = window * window_rows + permute(
            inner[mine], length, derive_key(seed, "window", name, epoch, window)
        )
    slots, within = np.divmod(mixed, size)
    return permute(slots, blocks, derive_key(seed, "blocks", name, epoch)) * size + within


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
                "is less than one "
                f"sequence in {PERIOD}, so it would never be read. Give it a weight of at least "
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
                    f"stages[{number}] still wants {remaining} sequences, but the datasets that it gives "
                    "weight to are "
                    "exhausted by then. Shorten the stage, raise max_epochs, or give weight to another "
                    "dataset."
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
