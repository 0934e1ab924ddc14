"""What a model predicts other than the next token. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Predicts = Literal["class", "labels", "number"]
"""`class` is one of several; `labels` are any number of several; `number` is a real one."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What stands on the trunk in place of the language model's output. It follows from the task and the labels."""

    predicts: Predicts
    """What its outputs mean."""
    outputs: int
    """Classes, labels, or 1 for a number."""
    bias: bool = False
    """Give each output a bias; Hugging Face's heads over tokens have one, those over sequences have none."""

    def __post_init__(self) -> None:
        least = 2 if self.predicts == "class" else 1
        if self.outputs < least or (self.predicts == "number" and self.outputs != 1):
            raise ValueError(
                f"outputs is {self.outputs} and predicts {self.predicts!r}: a class is one of at least 2, labels are "
                "at least 1, and a number is 1. Change one of them."
            )
