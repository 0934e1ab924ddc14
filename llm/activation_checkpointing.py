"""What a decoder keeps of a layer for the backward pass (Chen et al., 2016, arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

ActivationCheckpointing = Literal["off", "selective", "full"]
"""`full` keeps each layer's input and computes the layer again in the backward pass; `selective` keeps the results of
matrix products and attention and computes what is cheap again. Results stay bit for bit."""

_EXPENSIVE = frozenset(
    (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_grouped_mm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
    )
)
"""Operators by name: that of `varlen` is registered only where torch's module of it is imported."""


def run_layer(mode: ActivationCheckpointing, layer: Callable[..., Any], *arguments: Any) -> Any:
    """`layer(*arguments)`, with what the backward pass needs of it either kept or computed again.

    The layer goes in as it is, not its `forward`: hooks on it, by which ZeRO 3 gathers its parameters, run in both
    passes.
    """
    if mode == "off" or not torch.is_grad_enabled():
        return layer(*arguments)
    contexts: dict[str, Any] = {}
    if mode == "selective":
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    # a decoder layer draws no random numbers, so no generator state has to be saved and set again
    return checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False, **contexts)


def _keep_products(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation.name() in _EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
