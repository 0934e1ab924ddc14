"""Attention that is told where documents begin, so that work shrinks with them.

On CUDA torch's `varlen_attn` over the documents of all rows behind each other: FlashAttention 2 (arXiv:2307.08691), or
a newer kernel that torch runs in its place. On the CPU the same by causal rectangles, see `document_tiles`.

Legend: B batch, T query positions, S key positions, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from llm.attention import sdpa
from llm.attention.document_tiles import cut_tiles
from llm.attention.flash_kernels import require_active
from llm.attention.interface import AttentionMask, Backend, ScoreRule, Visibility
from llm.attention.masks import additive_mask, hides_the_past
from llm.attention.packing import pack_documents, pack_rows
from llm.attention.precision import of_one_dtype
from llm.attention.support import refuse_dtype, refuse_rule
from llm.attention.tiled import attend_tiles
from llm.memory import SHORT_ROW_TOKENS


def prepare(visibility: Visibility) -> AttentionMask:
    """Rectangles or beginnings. A document that comes back in its row has neither, and gets the bias of `sdpa`."""
    window = visibility.window
    if visibility.device.type == "cpu":
        short = visibility.key_length <= SHORT_ROW_TOKENS
        return additive_mask(visibility) if short else prepare_tiles(visibility)
    if visibility.document_ids_BS is None:
        return AttentionMask(is_causal=True, window=window)
    packed = pack_documents(visibility.document_ids_BS, visibility.query_length)
    if packed is None:
        return additive_mask(visibility)
    return AttentionMask(is_causal=True, packed=packed, window=window)


def attend(name: str, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, rule: ScoreRule) -> Tensor:
    """Nothing is copied but short documents on the CPU, and on CUDA what a cache holds beyond its length and, for the
    bias of `sdpa`, keys and values.
    """
    refuse_rule(name, rule)
    if q_BTHK.device.type != "cpu" and mask.bias is None:
        return attend_packed(name, q_BTHK, k_BSGK, v_BSGK, mask, rule)
    if mask.tiles is None:
        return sdpa.attend(q_BTHK, k_BSGK, v_BSGK, mask, rule)
    q, k, v = of_one_dtype(q_BTHK, k_BSGK, v_BSGK)
    return attend_tiles(q, k, v, mask.tiles, rule.scale).to(q_BTHK.dtype)


def prepare_tiles(visibility: Visibility) -> AttentionMask:
    """Rectangles where the past is hidden, however short the rows."""
    ids_BS = visibility.document_ids_BS
    if ids_BS is not None and not (ids_BS[:, 1:] != ids_BS[:, :-1]).any():
        visibility = visibility._replace(document_ids_BS=None)
    if visibility.query_length < visibility.key_length or not hides_the_past(visibility):
        return additive_mask(visibility)
    tiles = cut_tiles(visibility)
    return additive_mask(visibility) if tiles is None else AttentionMask(is_causal=False, tiles=tiles)


def attend_packed(
    name: str, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, rule: ScoreRule
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = of_one_dtype(q_BTHK, k_BSGK, v_BSGK)
    refuse_dtype(name, q.dtype)
    require_active(name)
    (B, T), S = q.shape[:2], k.shape[1]
    packed = mask.packed or pack_rows(B, T, S, q.device)
    mixed = varlen_attn(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        packed.query_starts,
        packed.key_starts,
        packed.longest_query,
        packed.longest_key,
        scale=rule.scale,
        # keys before and after the query's own; a document's last query stands at its last key
        window_size=(-1 if mask.window is None else mask.window - 1, 0),
        enable_gqa=q.shape[2] != k.shape[2],
    )
    assert isinstance(mixed, Tensor)  # it is a pair only where more is asked for
    return mixed.view(q_BTHK.shape).to(q_BTHK.dtype)


def varlen_backend(name: str) -> Backend:
    """`varlen`, or by another name the same with another kernel active in torch (see `flash_kernels`)."""
    return Backend(name, prepare, partial(attend, name))
