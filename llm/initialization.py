"""Initial value of a parameter as a pure function of (seed, its name), the same on any number of ranks."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from llm.config import ModelConfig
from llm.errors import InitializationError

_RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")


def initial_value(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """The value with which a parameter starts.

    Norm scales are one; matrices are normal with standard deviation `initializer_range`, and those that write
    to the residual stream are divided by sqrt(2 * layers), as in GPT-2 (Radford et al. 2019, section 2.3).

    Args:
        name: Full name of the parameter in the model.
        shape: Its whole shape, however it is partitioned.
        config: Of the model.
        seed: Of the run.

    Returns:
        fp32, on the CPU.

    Raises:
        InitializationError: A vector that is no norm scale: it has no rule.
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.float32, device="cpu")
    if len(shape) < 2:
        raise InitializationError(
            f"parameter {name} has shape {shape}: only matrices, and scales whose name ends in norm.weight, "
            "have an initial value. Rename it, or add its rule to llm/initialization.py."
        )
    deviation = config.initializer_range
    if name.endswith(_RESIDUAL_OUTPUTS):
        deviation /= math.sqrt(2 * config.num_hidden_layers)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest, "little"))
    value = torch.empty(shape, dtype=torch.float32, device="cpu")
    return value.normal_(0.0, deviation, generator=generator)


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
