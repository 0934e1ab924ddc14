"""torch's scaled_dot_product_attention, which finds a kernel for everything but capped scores and masks of dropout.

Legend: B batch, T query positions, S key positions, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llm.attention.interface import AttentionMask, Backend, ScoreRule
from llm.attention.masks import additive_mask
from llm.attention.support import refuse_rule


def attend(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, rule: ScoreRule) -> Tensor:
    """Key/value heads are shared by the kernel, never copied out."""
    refuse_rule("sdpa", rule)
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
        enable_gqa=q_BTHK.shape[2] != k_BSGK.shape[2],
    )
    return mixed_BHTK.transpose(1, 2).to(q_BTHK.dtype)


SDPA = Backend("sdpa", additive_mask, attend)
