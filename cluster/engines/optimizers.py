"""The torch optimizers that engines drive, made from configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cluster.engines.flat_state import Placement
from cluster.engines.muon import Muon
from cluster.topology import Precision
from llm.accounting import parameter_parts
from llm.config import ModelConfig, OptimizerConfig


def make_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, precision: Precision
) -> torch.optim.Optimizer:
    """The optimizer that a configuration names; every engine uses the same, so that they compare.

    AdamW and SGD are torch's fused forms, which CPUs and GPUs both have. Muon orthogonalises in the run's precision:
    bf16 as published, and fp32 where a run is asked to be that exact.

    Args:
        groups: Parameters with their `name` and `weight_decay`.
        config: The update rule.
        precision: Arithmetic of the run.
    """
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    adamw: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps, "fused": True}
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **adamw)
    return Muon(
        groups,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
        adjustment=config.learning_rate_adjustment,
        arithmetic=torch.bfloat16 if precision == "bf16" else torch.float32,
        **adamw,
    )


def place(
    optimizer: torch.optim.Optimizer,
    placements: Sequence[Placement],
    device: str,
    model: ModelConfig,
    *,
    partitioned: bool,
) -> None:
    """Tell an optimizer that needs whole matrices what lies where; the others work on any flat tensor."""
    if isinstance(optimizer, Muon):
        optimizer.place(
            placements,
            device,
            lambda name, shape: list(parameter_parts(name, shape, model).values()),
            partitioned=partitioned,
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every group; the loop is the only owner of the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
