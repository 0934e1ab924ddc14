"""The obvious attention, in fp32, with which every other is compared.

Legend: B batch, T query positions, S key positions, H query heads, G key/value heads, R = H / G query heads
per key/value head, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm.attention.interface import AttentionMask, Backend, ScoreRule, Visibility
from llm.attention.masks import additive_bias, visible_keys
from llm.dropout import drop


def prepare(visibility: Visibility) -> AttentionMask:
    """A bias, whatever is to be seen."""
    return AttentionMask(is_causal=False, bias=additive_bias(visible_keys(visibility), torch.float32))


def attend(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, rule: ScoreRule) -> Tensor:
    """Scores, cap, mask, softmax, dropout, weighted mean (arXiv:1706.03762, eq. 1).

    Query head h reads key/value head h // R, as in grouped-query attention (arXiv:2305.13245).
    """
    assert mask.bias is not None
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BTGRK = q_BTHK.float().reshape(B, T, G, H // G, K)
    scores_BGRTS = torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK.float()) * rule.scale
    if rule.softcap is not None:
        scores_BGRTS = rule.softcap * (scores_BGRTS / rule.softcap).tanh()
    weights_BGRTS = (scores_BGRTS + mask.bias[:, :, None]).softmax(dim=-1)
    if rule.dropout is not None:
        weights_BGRTS = drop(weights_BGRTS, rule.dropout)
    mixed_BTGRK = torch.einsum("bgrts,bsgk->btgrk", weights_BGRTS, v_BSGK.float())
    return mixed_BTGRK.reshape(B, T, H, K).to(q_BTHK.dtype)


EAGER = Backend("eager", prepare, attend)
