"""What a user may say about evaluation. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cluster.config_rules import STRICT, require_at_least_one


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Perplexity on the held-out documents, and text samples, in the course of training."""

    __pydantic_config__ = STRICT

    every_steps: int | None = 100
    """Steps between evaluations; one more is made at the end. Null: never."""
    max_sequences: int | None = None
    """Sequences per dataset, from the start of the validation split; null means all."""
    prompts: tuple[str, ...] = ("",)
    """Texts that the model continues at each evaluation, in samples.jsonl; the empty one has it begin a document. With
    `task: instruction` each is what a user says, and the model answers."""
    sample_tokens: int = 64
    """Tokens that it writes for each prompt at most, one forward pass on every worker each for all prompts together;
    0: no samples."""
    beside_training: bool = False
    """Evaluate in tasks of their own, from the checkpoint of the step, while the workers train on: the lines come
    later, with the step they belong to. A task holds the whole model and takes room that the workers leave free."""
    cpus_per_task: float = 1.0
    """CPU cores that an evaluation beside the training waits for; its threads are as many, at least 1. 0: it waits for
    none and shares those of others."""
    gpus_per_task: Literal["auto"] | int = "auto"
    """GPUs of an evaluation beside the training: 0 or 1. `auto` takes 1 where the workers train on GPUs."""
    max_waiting: int = 4
    """Checkpoints that are kept for their evaluation beside the training where `checkpoint.keep_last` would not keep
    them. Where more wait, evaluations are left out, and an event says which."""
    task_timeout_seconds: float = 1800.0
    """Longest that an evaluation beside the training may compute before it is ended and tried again, and longest wait
    at the end of the training for one of those that are missing."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "max_sequences"):
            if getattr(self, name) is not None:
                require_at_least_one(name, getattr(self, name))
        self._check_tasks()
        if self.sample_tokens < 0:
            raise ValueError(f"sample_tokens is {self.sample_tokens}: it is a count, or 0 for no samples.")
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError(
                f"prompts are {list(self.prompts)}: one of them twice would give one text. Name each once."
            )
        for prompt in self.prompts:
            if any("\ud800" <= letter <= "\udfff" for letter in prompt):
                raise ValueError(f"prompts hold {prompt!r}, which has half a UTF-16 pair and is no text. Remove it.")

    @property
    def threads_per_task(self) -> int:
        """Threads of arithmetic of an evaluation beside the training."""
        return max(1, int(self.cpus_per_task))

    def _check_tasks(self) -> None:
        """Refuse what an evaluation beside the training cannot be."""
        if self.beside_training and self.every_steps is None:
            raise ValueError(
                "beside_training is on and every_steps is null: nothing would be evaluated. Name the steps between "
                "evaluations, a multiple of checkpoint.every_steps, or leave beside_training out."
            )
        if not 0 <= self.cpus_per_task < math.inf:
            raise ValueError(f"cpus_per_task is {self.cpus_per_task}: it is a number of CPU cores, 0 or more.")
        if self.gpus_per_task not in ("auto", 0, 1):
            raise ValueError(f"gpus_per_task is {self.gpus_per_task}: an evaluation takes 0 or 1 GPU, or `auto`.")
        require_at_least_one("max_waiting", self.max_waiting)
        if not 0 < self.task_timeout_seconds < math.inf:
            raise ValueError(f"task_timeout_seconds is {self.task_timeout_seconds}, and must be above 0.")
