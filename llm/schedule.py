"""Learning rate as a pure function of the step. Imports no torch."""

from __future__ import annotations

import math

from llm.config import ScheduleConfig
from llm.errors import ScheduleError

_FALL_FROM_WARMUP = ("cosine", "linear")
_DEFAULT_DECAY_PARTS = 5
"""wsd decays over the last 1/5 of the steps unless told otherwise; 10-20 % does, arXiv:2405.18392."""


def learning_rate(step: int, schedule: ScheduleConfig, peak: float, max_steps: int) -> float:
    """Learning rate of one optimizer step.

    Linear warm-up reaches the peak at `warmup_steps`. Then `constant` stays there; `cosine` falls in half a
    wave to `min_learning_rate_ratio` of the peak at `max_steps` (arXiv:1608.03983); `linear` falls there in
    a straight line, which down to 0 beat the cosine at 20 and more tokens a parameter (arXiv:2502.15938); `wsd`
    stays, and falls in a straight line to that ratio over its last `decay_steps` (arXiv:2404.06395). A run
    shorter than its warm-up never reaches the peak.

    Args:
        step: Number of the step being made; the first is 1. Beyond `max_steps` the last rate holds.
        schedule: Name and lengths.
        peak: Rate at the end of warm-up.
        max_steps: Last step of the run.

    Raises:
        ScheduleError: The step is under 1.
    """
    if step < 1:
        raise ScheduleError(
            f"the learning rate was asked for at step {step}: steps are counted from 1, and the rate belongs "
            "to the step being made. Pass steps done + 1."
        )
    step = min(step, max_steps)
    warmup = schedule.warmup_steps
    rising = step / warmup if step < warmup else 1.0
    return peak * min(rising, _falling(step, schedule, max_steps))


def _falling(step: int, schedule: ScheduleConfig, max_steps: int) -> float:
    """Fraction of the peak that the decay allows at a step of at most max_steps."""
    floor, warmup = schedule.min_learning_rate_ratio, schedule.warmup_steps
    if schedule.name in _FALL_FROM_WARMUP and step > warmup:
        progress = (step - warmup) / (max_steps - warmup)
        if schedule.name == "linear":
            return floor + (1.0 - floor) * (1.0 - progress)
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule.name == "wsd":
        progress = max(0.0, 1.0 - (max_steps - step) / _decay_steps(schedule, max_steps))
        return floor + (1.0 - floor) * (1.0 - progress)
    return 1.0


def decay_start(schedule: ScheduleConfig, max_steps: int) -> float:
    """Last step whose rate does not depend on `max_steps`; a run there may still be made longer or shorter.

    Args:
        schedule: Name and lengths.
        max_steps: Last step of the run.

    Returns:
        A step; infinity for `constant`, which never depends on the length.
    """
    if schedule.name in _FALL_FROM_WARMUP:
        return schedule.warmup_steps
    if schedule.name == "wsd":
        return max_steps - _decay_steps(schedule, max_steps)
    return math.inf


def _decay_steps(schedule: ScheduleConfig, max_steps: int) -> int:
    return schedule.decay_steps or max(1, max_steps // _DEFAULT_DECAY_PARTS)
