"""Sizes of steps by table, and against a list of every step's size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.batch_sizes import BatchSizes, BatchSizeStage


def stages(*ends_and_sizes: tuple[int, int]) -> tuple[BatchSizeStage, ...]:
    return tuple(BatchSizeStage(until_step=end, global_batch_size=size) for end, size in ends_and_sizes)


GROWING = BatchSizes(16, stages((3, 4), (5, 8)))
STEPS = 60


@st.composite
def batch_sizes(draw: st.DrawFn) -> BatchSizes:
    ends = sorted(draw(st.sets(st.integers(1, 40), max_size=4)))
    sizes = sorted(draw(st.sets(st.integers(1, 50), min_size=len(ends) + 1, max_size=len(ends) + 1)))
    return BatchSizes(sizes[-1], stages(*zip(ends, sizes[:-1], strict=True)))


def listed(sizes: BatchSizes) -> list[int]:
    """The size of each step from 1 on, stage after stage."""
    result: list[int] = []
    for stage in sizes.warmup:
        result += [stage.global_batch_size] * (stage.until_step - len(result))
    return result + [sizes.final] * (STEPS - len(result))


@pytest.mark.parametrize(
    ("step", "size", "through"), [(1, 4, 4), (3, 4, 12), (4, 8, 20), (5, 8, 28), (6, 16, 44), (1005, 16, 16028)]
)
def test_sizes_follow_the_table(step: int, size: int, through: int) -> None:
    assert (GROWING.at(step), GROWING.through(step)) == (size, through)


def test_no_sequences_are_read_before_the_first_step() -> None:
    assert GROWING.through(0) == 0


@given(sizes=batch_sizes(), step=st.integers(1, STEPS))
def test_sizes_equal_those_of_a_list_of_steps(sizes: BatchSizes, step: int) -> None:
    every = listed(sizes)
    assert sizes.at(step) == every[step - 1]
    assert sizes.through(step) == sum(every[:step])
    assert sizes.smallest == min(every[0], sizes.final)


@given(sizes=batch_sizes(), step=st.integers(0, STEPS), more=st.integers(0, 60))
def test_steps_within_are_the_most_whose_sequences_are_there(sizes: BatchSizes, step: int, more: int) -> None:
    there = sizes.through(step) + more
    possible = sizes.steps_within(there)
    assert sizes.through(possible) <= there < sizes.through(possible + 1)


@given(sizes=batch_sizes(), others=batch_sizes(), step=st.integers(1, STEPS))
def test_stages_through_a_step_are_equal_where_the_sizes_are(sizes: BatchSizes, others: BatchSizes, step: int) -> None:
    continued = BatchSizes(sizes.at(step) + 1, sizes.stages_through(step))
    assert listed(continued)[:step] == listed(sizes)[:step]
    same = listed(sizes)[:step] == listed(others)[:step]
    assert (sizes.stages_through(step) == others.stages_through(step)) == same


def test_sizes_are_told_in_their_order() -> None:
    assert str(GROWING) == "4, then 8, then 16"
    assert str(BatchSizes(32)) == "32"


@pytest.mark.parametrize(
    ("final", "warmup", "message"),
    [
        (
            16,
            ((5, 4), (5, 8)),
            "batch_size_warmup holds a stage until step 5 after one until step 5: it would have no steps. Order the "
            "stages by until_step.",
        ),
        (
            16,
            ((3, 8), (5, 4)),
            "batch_size_warmup leads from 8 sequences to 4 (global_batch_size is 16): a warm-up grows with every "
            "stage, and ends below global_batch_size. Change the sizes, or leave a stage out.",
        ),
        (
            8,
            ((3, 8),),
            "batch_size_warmup leads from 8 sequences to 8 (global_batch_size is 8): a warm-up grows with every "
            "stage, and ends below global_batch_size. Change the sizes, or leave a stage out.",
        ),
    ],
)
def test_sizes_are_refused_when_they_do_not_grow(final: int, warmup: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        BatchSizes(final, stages(*warmup))
    assert str(error.value) == message


@pytest.mark.parametrize("stage", [(0, 4), (3, 0)])
def test_stage_is_refused_when_it_is_empty(stage: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is 0, and must be at least 1"):
        stages(stage)
