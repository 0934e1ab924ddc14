"""Which verb trains which task."""

from __future__ import annotations

from cluster.config import RunConfig
from launcher.errors import ConfigError

_VERBS = {"pretrain": "pretrain", "instruction": "finetune"}
"""By task."""


def verb_of(config: RunConfig) -> str:
    """The verb that trains a run."""
    return _VERBS[config.task]


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
            "finetune`, which learns the answers of conversations alone, or set task=pretrain."
        )
    raise ConfigError(
        f"task is {config.task}, and `{verb}` trains the task instruction: the answers of conversations. Set "
        "task=instruction, or use `longhaul pretrain`, which learns every token of the data."
    )
