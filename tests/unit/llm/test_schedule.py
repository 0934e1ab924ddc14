"""Learning rates by table."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config import ScheduleConfig
from llm.errors import ScheduleError
from llm.schedule import decay_start, learning_rate

NAMES: tuple[str, ...] = get_args(get_type_hints(ScheduleConfig)["name"])
PEAK = 2.0
TOLERANCE = 1e-12
"""Double precision arithmetic of a handful of operations."""

COSINE = ScheduleConfig(name="cosine", warmup_steps=10, min_learning_rate_ratio=0.1)
LINEAR = ScheduleConfig(name="linear", warmup_steps=10, min_learning_rate_ratio=0.1)
LINEAR_TO_ZERO = ScheduleConfig(name="linear", warmup_steps=0, min_learning_rate_ratio=0.0)
WSD = ScheduleConfig(name="wsd", warmup_steps=10, decay_steps=20, min_learning_rate_ratio=0.5)
WSD_DEFAULT = ScheduleConfig(name="wsd", warmup_steps=0, min_learning_rate_ratio=0.0)
CONSTANT = ScheduleConfig(name="constant", warmup_steps=10)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (COSINE, 1, 0.2),
        (COSINE, 9, 1.8),
        (COSINE, 10, 2.0),
        (COSINE, 11, 0.2 + 0.9 * (1 + math.cos(math.pi / 90))),
        (COSINE, 55, 1.1),
        (COSINE, 100, 0.2),
        (COSINE, 500, 0.2),
        (LINEAR, 1, 0.2),
        (LINEAR, 9, 1.8),
        (LINEAR, 10, 2.0),
        (LINEAR, 11, 1.98),
        (LINEAR, 55, 1.1),
        (LINEAR, 99, 0.22),
        (LINEAR, 100, 0.2),
        (LINEAR, 500, 0.2),
        (LINEAR_TO_ZERO, 1, 1.98),
        (LINEAR_TO_ZERO, 50, 1.0),
        (LINEAR_TO_ZERO, 100, 0.0),
        (WSD, 5, 1.0),
        (WSD, 10, 2.0),
        (WSD, 80, 2.0),
        (WSD, 81, 1.95),
        (WSD, 90, 1.5),
        (WSD, 100, 1.0),
        (WSD, 101, 1.0),
        (WSD_DEFAULT, 1, 2.0),
        (WSD_DEFAULT, 80, 2.0),
        (WSD_DEFAULT, 85, 1.5),
        (WSD_DEFAULT, 100, 0.0),
        (CONSTANT, 1, 0.2),
        (CONSTANT, 10, 2.0),
        (CONSTANT, 100, 2.0),
        (CONSTANT, 1000, 2.0),
    ],
)
def test_rate_follows_the_table_when_run_has_100_steps(schedule: ScheduleConfig, step: int, expected: float) -> None:
    assert learning_rate(step, schedule, PEAK, 100) == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_rate_only_rises_when_run_is_shorter_than_its_warmup(name: str) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=40, min_learning_rate_ratio=1.0)
    rates = [learning_rate(step, schedule, PEAK, 4) for step in range(1, 7)]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2], rel=TOLERANCE)


def test_plateau_is_the_same_when_wsd_is_prolonged() -> None:
    short = [learning_rate(step, WSD, PEAK, 100) for step in range(1, 81)]
    assert short == [learning_rate(step, WSD, PEAK, 1000) for step in range(1, 81)]


@pytest.mark.parametrize(
    ("schedule", "expected"), [(COSINE, 10), (LINEAR, 10), (WSD, 80), (WSD_DEFAULT, 80), (CONSTANT, math.inf)]
)
def test_decay_starts_where_the_rate_begins_to_depend_on_the_length(schedule: ScheduleConfig, expected: float) -> None:
    assert decay_start(schedule, 100) == expected
    last = int(min(expected, 99))
    assert learning_rate(last, schedule, PEAK, 100) == learning_rate(last, schedule, PEAK, 1000)
    if last < 99:
        assert learning_rate(last + 1, schedule, PEAK, 100) != learning_rate(last + 1, schedule, PEAK, 1000)


@given(
    name=st.sampled_from(NAMES),
    warmup=st.integers(0, 50),
    ratio=st.floats(0, 1),
    max_steps=st.integers(1, 100),
    step=st.integers(1, 120),
)
def test_rate_stays_between_zero_and_peak_when_anything_is_asked(
    name: str, warmup: int, ratio: float, max_steps: int, step: int
) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=warmup, min_learning_rate_ratio=ratio)
    rate = learning_rate(step, schedule, PEAK, max_steps)
    assert 0 <= rate <= PEAK
    if min(step, max_steps) >= warmup:
        assert rate >= ratio * PEAK * (1 - TOLERANCE)


def test_rate_is_refused_when_step_is_not_counted_from_one() -> None:
    with pytest.raises(ScheduleError) as error:
        learning_rate(0, COSINE, PEAK, 100)
    assert str(error.value) == (
        "the learning rate was asked for at step 0: steps are counted from 1, and the rate belongs "
        "to the step being made. Pass steps done + 1."
    )
