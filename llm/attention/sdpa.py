"""torch's scaled_dot_product_attention, which finds a kernel for everything but capped scores and masks of dropout.

Legend: B batch, T query positions, S key positions, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.attention.interface import AttentionMask, Backend, ScoreRule
from llm.attention.masks import additive_mask
from llm.attention.precision import autocast_dtype
from llm.attention.support import FLASH_DTYPES, refuse_rule


def attend(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, rule: ScoreRule) -> Tensor:
    """Memory grows with T + S and the bias, never with the scores of all heads: see `shares_heads`.

    Left out are head sizes on CUDA that no kernel takes, those that are no multiple of 16 bytes.
    """
    device_type = q_BTHK.device.type
    dtype = autocast_dtype(device_type) or q_BTHK.dtype
    shared = shares_heads(device_type, dtype, biased=mask.bias is not None)
    return attend_with(q_BTHK, k_BSGK, v_BSGK, mask, rule, shared=shared)


def shares_heads(device_type: str, dtype: torch.dtype, *, biased: bool) -> bool:
    """Whether torch has a kernel that reads each key/value head for all query heads of its group.

    On the CPU its flash kernel does. On CUDA FlashAttention does, which takes no bias and no fp32; the memory-efficient
    kernel, which takes both, does not up to torch 2.13, and so torch would fall back to holding all scores (`can_use_*`
    in aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). cuDNN's kernel would take groups with a bias, but not in
    fp32, not deterministically, and is preferred on some GPUs alone.

    Args:
        device_type: `cpu` or `cuda`.
        dtype: Of the queries as the kernel gets them.
        biased: Whether it is shown a bias.
    """
    return device_type == "cpu" or (not biased and dtype in FLASH_DTYPES)


def attend_with(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, rule: ScoreRule, *, shared: bool
) -> Tensor:
    """Attention whose key/value heads are shared by the kernel, or copied out, each as large as the queries."""
    refuse_rule("sdpa", rule)
    group = q_BTHK.shape[2] // k_BSGK.shape[2]
    if group > 1 and not shared:
        k_BSGK, v_BSGK = (x.repeat_interleave(group, dim=2) for x in (k_BSGK, v_BSGK))
    bias_B1TS = mask.bias
    if bias_B1TS is not None:
        # Under autocast the queries are narrower than the residual stream for which the bias was made.
        bias_B1TS = bias_B1TS.to(q_BTHK.dtype)
    mixed_BHTK = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BSGK.transpose(1, 2),
        v_BSGK.transpose(1, 2),
        attn_mask=bias_B1TS,
        is_causal=mask.is_causal,
        scale=rule.scale,
        enable_gqa=group > 1 and shared,
    )
    return mixed_BHTK.transpose(1, 2).to(q_BTHK.dtype)


SDPA = Backend("sdpa", additive_mask, attend)
