from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import StageConfig
from data_pipeline.errors import OrderError
from data_pipeline.order import PERIOD, SequenceOrder, Shuffle, SourceRows, quotas_of, shuffled_rows

SEEK_SECONDS = 0.010


def _sources(*specs: tuple[int, float, int | None]) -> list[SourceRows]:
    return [
        SourceRows(key=f"source {number}", rows=rows, weight=weight, max_epochs=epochs)
        for number, (rows, weight, epochs) in enumerate(specs)
    ]


def _walk(order: SequenceOrder, stages: list[StageConfig], count: int) -> list[tuple[int, int]]:
    """Slow twin: goes through the order one by one, counting; gives (source, ordinal) of each sequence."""
    given = [0] * len(order.sources)
    segments = iter(order.segments)
    weights = [(stage.sequences, stage.weights) for stage in stages]
    weights.append((count + 1, tuple(source.weight for source in order.sources)))
    result: list[tuple[int, int]] = []
    for length, stage_weights in weights:
        left = length
        while left and len(result) < count:
            live = [
                0.0 if source.limit is not None and given[i] >= source.limit else stage_weights[i]
                for i, source in enumerate(order.sources)
            ]
            if sum(live) == 0:
                return result
            pattern = next(segments).source_of
            assert np.bincount(pattern, minlength=len(live)).tolist() == quotas_of(live).tolist()
            place = 0
            while left and len(result) < count:
                source = int(pattern[place % PERIOD])
                limit = order.sources[source].limit
                if limit is not None and given[source] >= limit:
                    break
                result.append((source, given[source]))
                given[source] += 1
                left, place = left - 1, place + 1
    return result


@st.composite
def _mixtures(draw: st.DrawFn) -> tuple[list[SourceRows], list[StageConfig]]:
    number = draw(st.integers(1, 3))
    weights = st.floats(0.1, 10)
    sources = _sources(
        *[(draw(st.integers(1, 900)), draw(weights), draw(st.none() | st.integers(1, 4))) for _ in range(number)]
    )
    stages = [
        StageConfig(sequences=draw(st.integers(1, 3000)), weights=tuple(draw(weights) for _ in range(number)))
        for _ in range(draw(st.integers(0, 2)))
    ]
    return sources, stages


@settings(max_examples=40, deadline=None)
@given(_mixtures())
def test_order_agrees_with_a_sequential_walk_when_stages_and_caps_break_it(
    mixture: tuple[list[SourceRows], list[StageConfig]],
) -> None:
    sources, stages = mixture
    if stages and all(source.max_epochs for source in sources):
        sources = [*sources[:-1], SourceRows(key="last", rows=5, weight=1.0)]
    order = SequenceOrder(sources, seed=1, stages=stages)
    count = 9000 if order.total_sequences is None else order.total_sequences
    walked = _walk(order, stages, count + 1 if order.total_sequences is not None else count)
    assert len(walked) == count
    source, ordinal = order.ordinals(np.arange(count))
    assert list(zip(source.tolist(), ordinal.tolist(), strict=True)) == walked
    for position in range(0, count, max(1, count // 7)):
        reached = [sum(1 for item, _ in walked[:position] if item == i) for i in range(len(sources))]
        assert order.consumed(position).tolist() == reached


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 64),
    st.none() | st.integers(1, 12),
    st.integers(0, 2**32),
    st.integers(0, 3),
)
def test_rows_are_each_taken_once_an_epoch_when_shuffled(
    rows: int, block: int, window: int | None, seed: int, epoch: int
) -> None:
    order = SequenceOrder(_sources((rows, 1.0, None)), seed=seed, shuffle=Shuffle(block, window))
    source, row, epochs = order.locate(np.arange(epoch * rows, (epoch + 1) * rows))
    assert set(source.tolist()) == {0}
    assert set(epochs.tolist()) == {epoch}
    assert sorted(row.tolist()) == list(range(rows))
    alone = [order.locate([position])[1].item() for position in range(epoch * rows, (epoch + 1) * rows, 7)]
    assert alone == row[::7].tolist()


def test_rows_come_in_another_order_when_the_epoch_differs() -> None:
    order = SequenceOrder(_sources((500, 1.0, None)), seed=1)
    _, row, _ = order.locate(np.arange(1000))
    assert row[:500].tolist() != row[500:].tolist()


def test_rows_come_from_few_blocks_when_the_window_is_bounded() -> None:
    rows, block, window = 100_000, 100, 4
    taken = shuffled_rows(np.arange(rows), rows, Shuffle(block, window), (1, "key", 0))
    for start in range(0, rows, block * window):
        assert len(np.unique(taken[start : start + block * window] // block)) == window
    assert not np.array_equal(np.sort(taken[: block * window]), np.arange(block * window))


def test_quotas_are_exact_over_every_period_when_sources_are_mixed() -> None:
    weights = (5.0, 3.0, 1.0)
    order = SequenceOrder(_sources(*[(10**6, weight, None) for weight in weights]), seed=7)
    for period in (0, 1, 1000, 10**9):
        source, _, _ = order.locate(np.arange(PERIOD) + period * PERIOD)
        assert np.bincount(source).tolist() == quotas_of(weights).tolist()


def test_order_ends_when_every_source_is_capped() -> None:
    order = SequenceOrder(_sources((100, 1.0, 2), (50, 1.0, 1)), seed=0)
    assert order.total_sequences == 250
    with pytest.raises(OrderError, match="Sequence 250 was asked for, but the data ends after 250 sequences"):
        order.locate(np.array([250]))


def test_order_refuses_when_a_stage_outlives_its_datasets() -> None:
    with pytest.raises(OrderError, match=r"stages\[0\] still wants 50 sequences"):
        SequenceOrder(
            _sources((100, 1.0, 1), (50, 1.0, None)),
            seed=0,
            stages=[StageConfig(sequences=150, weights=(1.0, 0.0))],
        )


@pytest.mark.parametrize("window", [None, 64])
def test_seek_is_instant_when_rows_and_position_are_10_to_the_12(window: int | None) -> None:
    order = SequenceOrder(
        _sources((10**12, 3.0, None), (10**9, 1.0, None)), seed=0, shuffle=Shuffle(window_blocks=window)
    )
    order.locate(np.arange(256))
    seconds = []
    for position in (10**12, 10**11 + 7, 5 * 10**11):
        start = time.perf_counter()
        order.locate(np.arange(position, position + 256))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < SEEK_SECONDS


def test_order_of_a_source_is_its_own_when_sources_are_listed_otherwise() -> None:
    first, second = _sources((300, 1.0, None), (200, 1.0, None))
    rows = {}
    for name, pair in {"ab": [first, second], "ba": [second, first]}.items():
        order = SequenceOrder(pair, seed=3)
        source, row, _ = order.locate(np.arange(2000))
        rows[name] = row[source == pair.index(first)][:300].tolist()
    assert rows["ab"] == rows["ba"]
