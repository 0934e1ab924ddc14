"""Attention within the rectangles of `DocumentTiles`, by torch's flash kernel for CPUs.

One autograd function calls the kernel forward and backward: slices under autograd would each be given a gradient of
the whole length. Both operators are torch's own, the ones that scaled_dot_product_attention ends in.

Legend: B batch, T sequence, H query heads, G key/value heads, K head size, N copied positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm.attention.interface import DocumentTiles

_Place = tuple[slice, slice]

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_tiles(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, tiles: DocumentTiles, scale: float) -> Tensor:
    """Attention of tensors of one dtype. Shape: (B, T, H, K)."""
    mixed_BTHK: Tensor = _Tiled.apply(q_BTHK, k_BTGK, v_BTGK, tiles, scale)  # type: ignore[no-untyped-call]
    return mixed_BTHK


class _Tiled(torch.autograd.Function):
    """Each call's part of the output, and in the backward pass of the gradients, is written where it belongs."""

    @staticmethod
    def forward(ctx: Any, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, tiles: DocumentTiles, scale: float) -> Tensor:
        mixed_BTHK = torch.empty(q_BTHK.shape, dtype=q_BTHK.dtype)
        sums: list[Tensor] = []
        for at, keys_at, bias in _tile_places(tiles, q_BTHK.dtype):
            mixed_BTHK[at], of_tile = _forward(q_BTHK[at], k_BTGK[keys_at], v_BTGK[keys_at], bias, scale)
            sums.append(of_tile)
        copies: list[Tensor] = []
        if len(tiles.groups):
            copies = [x.flatten(0, 1).index_select(0, tiles.gather) for x in (q_BTHK, k_BTGK, v_BTGK)]
            mixed_NHK = torch.empty_like(copies[0])
            for span, shape, bias in _group_places(tiles, q_BTHK.dtype):
                q, k, v = (x[span].view(*shape, *x.shape[1:]) for x in copies)
                mixed, of_group = _forward(q, k, v, bias, scale)
                mixed_NHK[span] = mixed.flatten(0, 1)
                sums.append(of_group)
            mixed_BTHK.flatten(0, 1)[tiles.target] = mixed_NHK[tiles.kept]
            copies.append(mixed_NHK)
        ctx.tiles, ctx.scale, ctx.copies = tiles, scale, len(copies)
        ctx.save_for_backward(q_BTHK, k_BTGK, v_BTGK, mixed_BTHK, *copies, *sums)
        return mixed_BTHK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor | None, ...]:
        tiles: DocumentTiles = ctx.tiles
        saved = ctx.saved_tensors  # read once: under activation checkpointing a second time fails
        whole, rest = saved[:4], saved[4:]
        copies, sums = rest[: ctx.copies], iter(rest[ctx.copies :])
        shared = tiles.band is not None  # only bands share keys, whose gradients are then summed
        grads = [torch.zeros(x.shape, dtype=x.dtype) if shared else x.new_empty(x.shape) for x in whole[:3]]
        for at, keys_at, bias in _tile_places(tiles, grad_BTHK.dtype):
            q, k, v, mixed = (x[place] for x, place in zip(whole, (at, keys_at, keys_at, at), strict=True))
            of_tile = _backward(grad_BTHK[at], q, k, v, mixed, next(sums), bias, ctx.scale)
            for grad, place, part in zip(grads, (at, keys_at, keys_at), of_tile, strict=True):
                grad[place] = part + grad[place] if shared else part
        if len(tiles.groups):
            of_copies = _copies_backward(grad_BTHK.flatten(0, 1)[tiles.target], copies, sums, tiles, ctx.scale)
            for grad, copied in zip(grads, of_copies, strict=True):
                grad.flatten(0, 1)[tiles.target] = copied[tiles.kept]
        return (*grads, None, None)


def _copies_backward(
    grad: Tensor, copies: tuple[Tensor, ...], sums: Iterator[Tensor], tiles: DocumentTiles, scale: float
) -> list[Tensor]:
    """Gradients of the copies of q, k and v. Padding gets none, and by that gives none."""
    grad_NHK = torch.zeros_like(copies[0])
    grad_NHK[tiles.kept] = grad
    grads = [torch.empty_like(x) for x in copies[:3]]
    for span, shape, bias in _group_places(tiles, grad.dtype):
        of_mixed, q, k, v, mixed = (x[span].view(*shape, *x.shape[1:]) for x in (grad_NHK, *copies))
        of_group = _backward(of_mixed, q, k, v, mixed, next(sums), bias, scale)
        for of_copy, part in zip(grads, of_group, strict=True):
            of_copy[span] = part.flatten(0, 1)
    return grads


def _tile_places(tiles: DocumentTiles, dtype: torch.dtype) -> Iterator[tuple[_Place, _Place, Tensor | None]]:
    """Where the queries and the keys of each tile are, and its bias."""
    band = None if tiles.band is None else tiles.band.to(dtype)
    for row, end_row, key, query, end, banded in tiles.tiles.tolist():
        rows = slice(row, end_row)
        bias = band[: end - query, : end - key] if banded and band is not None else None
        yield (rows, slice(query, end)), (rows, slice(key, end)), bias


def _group_places(tiles: DocumentTiles, dtype: torch.dtype) -> Iterator[tuple[slice, tuple[int, int], Tensor | None]]:
    """Where the copies of each group are, its documents and padded length, and its bias."""
    end, window = 0, None
    if tiles.band is not None:
        window = tiles.band.shape[1] - tiles.band.shape[0] + 1
    for documents, length in tiles.groups.tolist():
        start, end = end, end + documents * length
        bias = None
        if window is not None and window < length and tiles.band is not None:
            # key j of a document stands where key j + window - 1 of a band does
            bias = tiles.band[:length, window - 1 : window - 1 + length].to(dtype)
        yield slice(start, end), (documents, length), bias


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    mixed, sums = _kernel(*heads_first, 0.0, bias is None, attn_mask=bias, scale=scale)
    return mixed.transpose(1, 2), sums


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, sums: Tensor, bias: Tensor | None, scale: float
) -> list[Tensor]:
    heads_first = (x.transpose(1, 2) for x in (grad, q, k, v, mixed))
    grads = _kernel_backward(*heads_first, sums, 0.0, bias is None, attn_mask=bias, scale=scale)
    return [x.transpose(1, 2) for x in grads]
