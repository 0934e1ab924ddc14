"""What a run's configuration asks for that its last step comes too early for. Imports no torch."""

from __future__ import annotations

from cluster.config import RunConfig
from llm.schedule import decay_start


def never_reached(config: RunConfig) -> list[str]:
    """Say what of warm-up and decay a run ends without.

    Told and not refused: people try a long run for a few steps, and what has begun may always go on.

    Args:
        config: The run.

    Returns:
        A sentence for each, with the remedy.
    """
    told, max_steps = [], config.train.max_steps
    warmup = config.schedule.warmup_steps
    if warmup > max_steps:
        told.append(
            f"schedule.warmup_steps is {warmup} and train.max_steps {max_steps}: the learning rate never reaches its "
            "peak. Lower the one, or raise the other."
        )
    elif config.schedule.name == "wsd" and decay_start(config.schedule, max_steps) < warmup:
        told.append(
            f"schedule.warmup_steps is {warmup}, and of train.max_steps {max_steps} the decay takes all after step "
            f"{max(0, round(decay_start(config.schedule, max_steps)))}: the learning rate falls before it reaches its "
            "peak. Shorten one of them (schedule.decay_steps is the decay), or raise train.max_steps."
        )
    stages = config.train.batch_size_warmup
    if stages and stages[-1].until_step >= max_steps:
        told.append(
            f"train.batch_size_warmup lasts until step {stages[-1].until_step} and train.max_steps is {max_steps}: no "
            f"step has the {config.train.global_batch_size} sequences of train.global_batch_size. End the warm-up "
            "earlier, or raise train.max_steps."
        )
    return told
