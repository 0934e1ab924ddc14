"""Which checkpoints stay: the newest, the permanent ones and one per period of time. A pure function."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.config import CheckpointConfig

_SECONDS_PER_MINUTE = 60.0


def steps_to_delete(saved: Iterable[tuple[int, float]], policy: CheckpointConfig) -> list[int]:
    """Steps whose checkpoints retention removes.

    A checkpoint stays when it is one of the `keep_last` of the highest steps; or when `keep_every_steps` divides its
    step; or when it is the first, by step, of its period: with `keep_every_minutes` M, time is cut into periods of M
    minutes from the Unix epoch on, and a checkpoint belongs to the one in which it was created. The first of a period
    remains the first whatever is saved later, so that what was kept once is kept for good, and it makes no difference
    whether retention was applied after every save or once.

    Args:
        saved: Step and creation time (Unix seconds) of every usable checkpoint; steps differ.
        policy: How many stay.

    Returns:
        The steps, lowest first.
    """
    by_step = sorted(saved)
    kept = {step for step, _ in by_step[-policy.keep_last :]}
    if policy.keep_every_steps is not None:
        kept |= {step for step, _ in by_step if step % policy.keep_every_steps == 0}
    if policy.keep_every_minutes is not None:
        period_seconds = policy.keep_every_minutes * _SECONDS_PER_MINUTE
        first_of_period: dict[float, int] = {}
        for step, created_unix_seconds in by_step:
            first_of_period.setdefault(created_unix_seconds // period_seconds, step)
        kept |= set(first_of_period.values())
    return [step for step, _ in by_step if step not in kept]
