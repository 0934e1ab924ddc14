"""The rectangles that documents and windows are cut into."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.attention import Visibility
from llm.attention.document_tiles import PADDED_LENGTHS, SHORT_TOKENS, cut_tiles
from llm.attention.interface import DocumentTiles
from llm.attention.masks import visible_keys

CPU = torch.device("cpu")


def cut(ids: list[list[int]] | None, T: int, window: int | None) -> DocumentTiles:
    ids_BT = None if ids is None else torch.tensor(ids)
    tiles = cut_tiles(Visibility(T, T, ids_BT, window, torch.float32, CPU))
    assert tiles is not None
    return tiles


def test_long_documents_are_calls_of_their_own_and_whole_rows_one_when_cut() -> None:
    tiles = cut([[0] * 200, [1] * 200, [0] * 100 + [1] * 100], 200, None)
    assert tiles.tiles.tolist() == [[0, 2, 0, 0, 200, 0], [2, 3, 0, 0, 100, 0], [2, 3, 100, 100, 200, 0]]
    assert len(tiles.groups) == len(tiles.gather) == 0
    assert tiles.band is None


def test_short_documents_of_like_length_are_padded_into_one_call_when_cut() -> None:
    tiles = cut([[0, 0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 2, 2]], 8, None)
    assert len(tiles.tiles) == 0
    assert tiles.groups.tolist() == [[3, 1], [1, 2], [2, 3], [1, 6]]
    assert tiles.gather.tolist() == [6, 7, 8, 14, 15, 0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 13]
    assert tiles.target.tolist() == tiles.gather.tolist()[:-1]


def test_positions_behind_the_window_are_bands_when_cut() -> None:
    assert cut(None, 300, 100).tiles.tolist() == [
        [0, 1 << 30, 0, 0, 100, 0],
        [0, 1 << 30, 1, 100, 228, 1],
        [0, 1 << 30, 129, 228, 300, 1],
    ]


def test_nothing_is_cut_when_a_document_goes_on_after_another() -> None:
    visibility = Visibility(4, 4, torch.tensor([[0, 0, 0, 0], [1, 0, 1, 1]]), None, torch.float32, CPU)
    assert cut_tiles(visibility) is None


def test_padded_lengths_grow_and_end_with_the_longest_short_document() -> None:
    assert list(PADDED_LENGTHS) == sorted(PADDED_LENGTHS)
    assert PADDED_LENGTHS[-1] == SHORT_TOKENS


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=40),
    T=st.integers(2, 200),
    window=st.none() | st.integers(1, 220),
)
def test_each_visible_score_is_computed_once_when_documents_have_any_lengths(
    lengths: list[int], T: int, window: int | None
) -> None:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ids_BT = torch.cat([ids, torch.full((2 * T,), len(lengths))])[: 2 * T].reshape(2, T)
    visibility = Visibility(T, T, ids_BT, window, torch.float32, CPU)
    tiles = cut_tiles(visibility)
    assert tiles is not None
    computed_BTT = torch.zeros(2, T, T, dtype=torch.int64)
    for row, end_row, key, query, end, banded in tiles.tiles.tolist():
        seen = torch.ones(end - query, end - key).tril()
        if banded:
            assert tiles.band is not None
            seen = tiles.band[: end - query, : end - key] == 0
        computed_BTT[row:end_row, query:end, key:end] += seen.long()
    at, kept = 0, set(tiles.kept.tolist())
    for documents, padded in tiles.groups.tolist():
        for _ in range(documents):
            places = [int(tiles.gather[i]) for i in range(at, at + padded) if i in kept]
            for query, place in enumerate(places):
                for key_place in places[: query + 1][-(window or T) :]:
                    computed_BTT[place // T, place % T, key_place % T] += 1
            at += padded
    assert torch.equal(computed_BTT, visible_keys(visibility).long())


@pytest.mark.parametrize("window", [None, 16])
def test_positions_computed_shrink_with_documents_when_they_are_short(window: int | None) -> None:
    ids = (torch.arange(1024) // 20).repeat(2, 1)
    tiles = cut_tiles(Visibility(1024, 1024, ids, window, torch.float32, CPU))
    assert tiles is not None
    scores = sum(documents * padded**2 for documents, padded in tiles.groups.tolist())
    assert len(tiles.tiles) == 0
    assert scores < 2 * 1024 * 30  # of 2 * 1024 * 1024
