"""Which verb trains which task."""

from __future__ import annotations

from cluster.config import RunConfig
from cluster.tasks import KINDS
from launcher.errors import ConfigError

FINE_TUNING = ("instruction", *KINDS)
"""The tasks of `finetune`."""


def verb_of(config: RunConfig) -> str:
    """The verb that trains a run."""
    return "pretrain" if config.task == "pretrain" else "finetune"


def require_task_of(verb: str, config: RunConfig) -> None:
    """Refuse a run of a task that another verb trains.

    Raises:
        ConfigError: The message names that verb, and how to have this one's task.
    """
    right = verb_of(config)
    if verb == right:
        return
    if right == "finetune":
        raise ConfigError(
            f"task is {config.task}, and `{verb}` trains the task pretrain: every token of the data. Use `longhaul "
            "finetune`, or set task=pretrain."
        )
    raise ConfigError(
        f"task is {config.task}, and `{verb}` trains the tasks {', '.join(FINE_TUNING)}. Set task to one of them, or "
        "use `longhaul pretrain`, which learns every token of the data."
    )
