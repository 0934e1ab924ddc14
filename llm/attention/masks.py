"""Which keys queries see, as a table and as a bias: the meaning of `Visibility`, from which no backend departs.

Legend: B batch, T query positions, S key positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm.attention.interface import AttentionMask, Visibility


def visible_keys(visibility: Visibility) -> Tensor:
    """True where a query sees a key; each sees at least itself. Shape: (B or 1, T, S), bool."""
    T, S, ids_BS = visibility.query_length, visibility.key_length, visibility.document_ids_BS
    key_S = torch.arange(S, device=visibility.device)
    behind_TS = key_S[S - T :, None] - key_S
    visible_TS = behind_TS >= 0
    if visibility.window is not None:
        visible_TS = visible_TS & (behind_TS < visibility.window)
    if ids_BS is None:
        return visible_TS[None]
    return visible_TS & (ids_BS[:, S - T :, None] == ids_BS[:, None, :])


def hides_the_past(visibility: Visibility) -> bool:
    """Whether a query may be kept from a key before it. Reads no tensor's content."""
    window, ids_BS = visibility.window, visibility.document_ids_BS
    return ids_BS is not None or (window is not None and window < visibility.key_length)


def additive_mask(visibility: Visibility) -> AttentionMask:
    """The mask of kernels that know the causal triangle and else are shown a bias, cut once for all layers."""
    if not hides_the_past(visibility):
        if visibility.query_length == visibility.key_length:
            return AttentionMask(is_causal=True)
        if visibility.query_length == 1:
            return AttentionMask(is_causal=False)
    return AttentionMask(is_causal=False, bias=additive_bias(visible_keys(visibility), visibility.dtype))


def additive_bias(visible_BTS: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where True, -inf where False. Shape: (B, T, S) -> (B, 1, T, S)."""
    # Not left boolean: torch would turn a boolean mask into this very tensor again in every layer.
    bias_BTS = torch.zeros(visible_BTS.shape, dtype=dtype, device=visible_BTS.device)
    return bias_BTS.masked_fill_(~visible_BTS, float("-inf"))[:, None]
