"""Regional compilation: each decoder block by itself, so that one compiled form serves all layers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from llm.transformer import Transformer


def compile_blocks(model: Transformer) -> None:
    """Compile the forward pass of every decoder block in place, for training and evaluation.

    All blocks have the same code and shapes, so one compiled form serves them whatever the depth. Their hooks, by which
    ZeRO 3 gathers parameters, stay outside. With a cache of keys and values, whose length is another at every token,
    they run as they are.
    """
    for block in model.model.layers:
        block.forward = _compiled_without_cache(block.forward)


def compilation_seconds() -> float:
    """Seconds that torch has compiled for in this process, by its own count.

    That is of whole frames with what they are lowered to, and of backward passes, which are lowered at their first
    use; not of kernels that are timed against each other at theirs. 0 where the compiler was never loaded: it is not
    loaded here, which would take seconds of a start that has no use for it.
    """
    count = sys.modules.get("torch._dynamo.utils")
    return 0.0 if count is None else float(count.calculate_time_spent()["total_wall_time"])


def _compiled_without_cache(plain: Any) -> Any:
    compiled: Any = torch.compile(plain)

    def forward(x_BTD: Any, around: Any, cache: Any = None) -> Any:
        return compiled(x_BTD, around) if cache is None else plain(x_BTD, around, cache)

    return forward
