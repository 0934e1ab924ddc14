"""The visible part of the square of scores cut into causal rectangles, so that work shrinks with documents and windows.

torch's flash kernel for CPUs knows the causal triangle and a bias, and with a bias it computes the whole square. So a
document becomes a call of its own on views of its positions. Short ones, whose calls would cost more than their work,
are copied beside each other by length, a little padding at their ends: queries of padding are thrown away, and its
keys come after every query that counts. A document longer than the window is the triangle of its first `window`
positions and then bands: blocks of queries with the keys that they see, which need a bias, the same for all.

Legend: B batch, T sequence, N copied positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llm.attention.interface import DocumentTiles, Visibility
from llm.attention.masks import additive_bias
from llm.memory import BAND_QUERIES

SHORT_TOKENS = 64
"""Documents up to this length are copied beside each other: a call for each would cost more than that."""
PADDED_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, SHORT_TOKENS)
"""What short documents are padded to: by less than half, and by a quarter at most where scores begin to cost."""
_ALL_ROWS = 1 << 30  # slices end at the last row


class _Documents(NamedTuple):
    row: Tensor
    start: Tensor
    length: Tensor


def cut_tiles(visibility: Visibility) -> DocumentTiles | None:
    """The rectangles of a visibility with T = S on the CPU.

    Returns:
        None where a document goes on after another has begun in its row: its part is no triangle.
    """
    T, ids_BT = visibility.key_length, visibility.document_ids_BS
    window = visibility.window if visibility.window is not None and visibility.window < T else None
    band = None if window is None else _band(window, visibility.dtype)
    nothing = torch.empty(0, dtype=torch.int64)
    if ids_BT is None:
        tiles = torch.tensor(_tiles_of(0, _ALL_ROWS, 0, T, window))
        return DocumentTiles(tiles, nothing.reshape(0, 2), nothing, nothing, nothing, band)
    documents = _documents(ids_BT)
    if documents is None:
        return None
    long = documents.length > SHORT_TOKENS
    places = _stacked(torch.stack(documents, dim=1)[long], T)
    rows = [tile for place in places for tile in _tiles_of(*place, window)]
    tiles = torch.tensor(rows, dtype=torch.int64).reshape(-1, 6)
    short = _Documents(*(column[~long] for column in documents))
    return DocumentTiles(tiles, *_grouped(short, T), band)


def _documents(ids_BT: Tensor) -> _Documents | None:
    """A document begins where the id changes along a row. None if an id comes back in its row."""
    B, T = ids_BT.shape
    begins_BT = torch.ones(B, T, dtype=torch.bool)
    begins_BT[:, 1:] = ids_BT[:, 1:] != ids_BT[:, :-1]
    begins = begins_BT.flatten().nonzero().flatten()
    row = begins // T
    named = ids_BT.flatten()[begins].long() + (row << 32)  # ids are int32, or as small
    if len(torch.unique(named)) < len(named):
        return None
    return _Documents(row, begins % T, torch.diff(begins, append=torch.tensor([B * T])))


def _stacked(documents: Tensor, T: int) -> list[tuple[int, int, int, int]]:
    """First row, end row, start and length; whole rows below each other are one place. Shape in: (documents, 3)."""
    places: list[tuple[int, int, int, int]] = []
    for row, start, length in documents.tolist():
        if length == T and places and places[-1][1:] == (row, 0, T):
            places[-1] = (places[-1][0], row + 1, 0, T)
        else:
            places.append((row, row + 1, start, length))
    return places


def _tiles_of(row: int, end_row: int, start: int, length: int, window: int | None) -> list[list[int]]:
    """The triangle of a document, or that of its first window and the bands behind; columns as in `DocumentTiles`."""
    triangle = length if window is None else min(length, window)
    tiles = [[row, end_row, start, start, start + triangle, 0]]
    if window is not None:
        for query in range(start + triangle, start + length, BAND_QUERIES):
            end = min(query + BAND_QUERIES, start + length)
            tiles.append([row, end_row, query - window + 1, query, end, 1])
    return tiles


def _band(window: int, dtype: torch.dtype) -> Tensor:
    """Bias in which query i sees keys i to i + window - 1. Shape: (BAND_QUERIES, BAND_QUERIES + window - 1)."""
    ahead = torch.arange(BAND_QUERIES + window - 1) - torch.arange(BAND_QUERIES)[:, None]
    return additive_bias(((ahead >= 0) & (ahead < window))[None], dtype)[0, 0]


def _grouped(short: _Documents, T: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`groups`, `gather`, `kept` and `target` of `DocumentTiles`."""
    sizes = torch.tensor(PADDED_LENGTHS)
    size, order = torch.searchsorted(sizes, short.length).sort(stable=True)
    used, documents = torch.unique_consecutive(size, return_counts=True)
    padded, length = sizes[size], short.length[order]
    begin = short.row[order] * T + short.start[order]
    within_N = torch.arange(int(padded.sum())) - (padded.cumsum(0) - padded).repeat_interleave(padded)
    length_N, begin_N = length.repeat_interleave(padded), begin.repeat_interleave(padded)
    gather_N = begin_N + torch.minimum(within_N, length_N - 1)
    kept = (within_N < length_N).nonzero().flatten()
    return torch.stack((documents, sizes[used]), dim=1), gather_N, kept, gather_N[kept]
