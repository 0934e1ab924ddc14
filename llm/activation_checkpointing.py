"""What a decoder keeps of a layer for the backward pass: all of it, or its input alone (Chen et al., 2016,
arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ActivationCheckpointing = Literal["off", "full"]
"""`full` keeps each layer's input and computes the layer again in the backward pass; results stay bit for bit."""


def run_layer(mode: ActivationCheckpointing, layer: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`layer(*arguments)`, with what the backward pass needs of it either kept or computed again.

    The layer goes in as it is, not its `forward`: hooks on it, by which ZeRO 3 gathers its parameters, run in both
    passes.
    """
    if mode == "off" or not torch.is_grad_enabled():
        return layer(*arguments)
    # a decoder layer draws no random numbers, so no generator state has to be saved and set again
    output: Tensor = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
    return output
