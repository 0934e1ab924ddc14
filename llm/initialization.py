"""Initial value of a parameter as a pure function of (seed, its name), the same on any number of ranks."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from llm.accounting import is_norm, parameter_parts
from llm.config import ModelConfig
from llm.errors import InitializationError

_RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight", "experts.down_proj")


def initial_value(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """The value with which a parameter starts.

    Norm scales are one, biases zero; matrices are normal with standard deviation `initializer_range`, and those that
    write to the residual stream are divided by sqrt(2 * layers), as in GPT-2 (Radford et al. 2019, section 2.3), unless
    `depth_scaled_initialization` is off. Matrices that lie in one parameter start as they would on their own.

    Args:
        name: Full name of the parameter in the model.
        shape: Its whole shape, however it is partitioned.
        config: Of the model.
        seed: Of the run.

    Returns:
        fp32, on the CPU.

    Raises:
        InitializationError: A vector that is neither norm nor bias: it has no rule.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=torch.float32, device="cpu")
    if is_norm(name):
        return torch.ones(shape, dtype=torch.float32, device="cpu")
    if len(shape) < 2:
        raise InitializationError(
            f"parameter {name} has shape {shape}: only matrices, biases, and scales whose name ends in norm.weight, "
            "have an initial value. Rename it, or add its rule to llm/initialization.py."
        )
    deviation = config.initializer_range
    if config.depth_scaled_initialization and name.endswith(_RESIDUAL_OUTPUTS):
        deviation /= math.sqrt(2 * config.num_hidden_layers)
    value = torch.empty(shape, dtype=torch.float32, device="cpu")
    parts = parameter_parts(name, shape, config)
    for part, rows in zip(parts, torch.split(value.flatten(0, -2), list(parts.values())), strict=True):
        digest = hashlib.blake2b(f"{seed}/{part}".encode(), digest_size=8).digest()
        generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest, "little"))
        rows.normal_(0.0, deviation, generator=generator)
    return value


def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Give every parameter of a whole, unpartitioned module its initial value, in the parameter's own dtype.

    Raises:
        InitializationError: A parameter is on the meta device and has no memory.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InitializationError(
                f"parameter {name} is on the meta device: it has a shape and no memory to hold a value. "
                "Call model.to_empty(device=...) first."
            )
        with torch.no_grad():
            parameter.copy_(initial_value(name, tuple(parameter.shape), config, seed))
