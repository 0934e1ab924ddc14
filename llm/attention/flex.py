"""torch's FlexAttention (arXiv:2412.05496): the rule of what is seen, compiled into a kernel that skips what is not.

Legend: B batch, T query positions, S key positions, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llm.attention.interface import AttentionMask, Backend, ScoreRule, Visibility
from llm.attention.precision import of_one_dtype
from llm.attention.support import refuse_rule

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_MASKS_HELD = 64
"""Masks without documents depend on lengths alone; a training has one for each window."""


def prepare(visibility: Visibility) -> AttentionMask:
    """Blocks of 128 x 128 scores that are seen wholly, in part or not at all."""
    if visibility.document_ids_BS is None:
        lengths = visibility.query_length, visibility.key_length
        block_mask = _mask_of_lengths(*lengths, visibility.window, visibility.device)
    else:
        block_mask = _make_block_mask(visibility)
    return AttentionMask(is_causal=False, block_mask=lambda: block_mask)


def attend_with(
    kernel: Callable[..., Any], q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, rule: ScoreRule
) -> Tensor:
    """Attention by any function with the signature of `flex_attention`."""
    refuse_rule("flex", rule)
    assert mask.block_mask is not None
    q, k, v = of_one_dtype(q_BTHK, k_BSGK, v_BSGK)
    mixed_BHTK: Tensor = kernel(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        score_mod=None if rule.softcap is None else _cap(rule.softcap),
        block_mask=mask.block_mask(),
        scale=rule.scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed_BHTK.transpose(1, 2).to(q_BTHK.dtype)


def attend(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, rule: ScoreRule) -> Tensor:
    """Compiled always: without compiling torch would hold all scores, and say so in a warning alone."""
    return attend_with(_compiled_attention(), q_BTHK, k_BSGK, v_BSGK, mask, rule)


@lru_cache(maxsize=_MASKS_HELD)
def _mask_of_lengths(query_length: int, key_length: int, window: int | None, device: torch.device) -> BlockMask:
    return _make_block_mask(Visibility(query_length, key_length, None, window, torch.float32, device))


def _make_block_mask(visibility: Visibility) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    T, S, ids_BS = visibility.query_length, visibility.key_length, visibility.document_ids_BS
    # Compiled, the table of all scores' visibility, B * T * S bytes, is never in memory.
    create = create_block_mask if visibility.device.type == "cpu" else _compiled_block_mask()
    rows = None if ids_BS is None else len(ids_BS)
    block_mask: BlockMask = create(_visible(visibility), rows, None, T, S, device=visibility.device)
    return block_mask


def _visible(visibility: Visibility) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    past, window = visibility.key_length - visibility.query_length, visibility.window
    ids_BS = visibility.document_ids_BS

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = query + past
        seen = key <= position
        if window is not None:
            seen = seen & (position - key < window)
        if ids_BS is not None:
            seen = seen & (ids_BS[row, position] == ids_BS[row, key])
        return seen

    return visible


def _cap(softcap: float) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    def cap(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


@cache
def _compiled_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # fullgraph: after its limit of recompilations torch would go on uncompiled
    return torch.compile(flex_attention, fullgraph=True)


@cache
def _compiled_block_mask() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask)


FLEX = Backend("flex", prepare, attend)
