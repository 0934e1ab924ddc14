"""What a user may say about the model, its optimizer and its schedule. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm.config_rules import STRICT, require_positive
from llm.model_config import ModelConfig, RopeScaling

__all__ = ["STRICT", "ModelConfig", "OptimizerConfig", "OptimizerName", "RopeScaling", "ScheduleConfig"]

OptimizerName = Literal["adamw", "sgd", "muon"]
_OPTIMIZERS_OF_FIELD: dict[str, tuple[OptimizerName, ...]] = {
    "betas": ("adamw", "muon"),
    "eps": ("adamw", "muon"),
    "momentum": ("sgd", "muon"),
    "nesterov": ("sgd", "muon"),
    "ns_steps": ("muon",),
    "learning_rate_adjustment": ("muon",),
}
"""The optimizers that read each field; others are read by all."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule, and gradient clipping before it."""

    __pydantic_config__ = STRICT

    name: OptimizerName = "adamw"
    """`adamw` (arXiv:1711.05101); `sgd` with momentum; `muon` (arXiv:2502.16982) for the matrices of the decoder
    layers, with AdamW for embedding, output and norms."""
    learning_rate: float = 1e-3
    """Peak rate, reached after warm-up."""
    weight_decay: float = 0.1
    """Decay of matrices, norms have none: decoupled from the gradient, but with sgd added to it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments; adamw, muon."""
    eps: float = 1e-8
    """Added to the root of the second moment; adamw, muon."""
    momentum: float = 0.95
    """Decay rate of the sum (sgd) or average (muon) of gradients; sgd, muon."""
    nesterov: bool = True
    """Add the newest gradient to the momentum once more before it is applied; sgd, muon."""
    ns_steps: int = 5
    """Newton-Schulz iterations that orthogonalise an update; muon."""
    learning_rate_adjustment: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """How a matrix's rate follows from its shape A x B: times 0.2 sqrt(max(A, B)), which keeps AdamW's rates usable,
    or times sqrt(max(1, A / B)); muon."""
    gradient_clip_norm: float | None = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it. Null means no clipping."""

    def __post_init__(self) -> None:
        require_positive("learning_rate", self.learning_rate)
        require_positive("eps", self.eps)
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}, and a decay cannot be negative. Use 0 for none.")
        for name, optimizers in _OPTIMIZERS_OF_FIELD.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default and self.name not in optimizers:
                raise ValueError(
                    f"{name} is {value!r}, and optimizer.name is {self.name}, which has no use for it: it belongs to "
                    f"{' and '.join(optimizers)}. Leave {name} out, or change the name."
                )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}: each must be at least 0 and under 1.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}: it must be at least 0 and under 1.")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov is on and momentum is 0, so there is nothing to add to. Set nesterov to false.")
        if not 1 <= self.ns_steps < 100:
            raise ValueError(f"ns_steps is {self.ns_steps}: it must be from 1 to 99.")
        if self.gradient_clip_norm is not None:
            require_positive("gradient_clip_norm", self.gradient_clip_norm)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over steps: linear warm-up, then the named shape down to a fraction of the peak."""

    __pydantic_config__ = STRICT

    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """`cosine` half wave; `linear` straight line from warm-up to the end (arXiv:2502.15938); `wsd` warm-up, stable,
    linear decay (arXiv:2404.06395); `constant` after warm-up."""
    warmup_steps: int = 40
    """Steps of linear rise to the peak."""
    decay_steps: int | None = None
    """wsd only: length of the final decay; null means a fifth of max_steps."""
    min_learning_rate_ratio: float = 0.1
    """Rate at the end of cosine, linear or wsd, as a fraction of the peak."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, and cannot be negative. Use 0 for none.")
        if self.decay_steps is not None:
            if self.name != "wsd":
                raise ValueError(f"decay_steps belongs to the wsd schedule, and schedule.name is {self.name}. Drop it.")
            require_positive("decay_steps", self.decay_steps)
        if not 0 <= self.min_learning_rate_ratio <= 1:
            raise ValueError(
                f"min_learning_rate_ratio is {self.min_learning_rate_ratio}: it is a fraction of the peak, from 0 to 1."
            )
