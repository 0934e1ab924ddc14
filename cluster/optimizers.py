"""The torch optimizers that engines drive, made from configuration."""

from __future__ import annotations

from typing import Any

import torch

from llm.config import OptimizerConfig


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW in its fused form, which CPUs and GPUs both have; every engine uses the same, so that they compare."""
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
        weight_decay=config.weight_decay,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every group; the loop is the only owner of the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
