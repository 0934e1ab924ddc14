"""Beginnings of packed documents against a loop over rows."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.attention.packing import pack_documents, pack_rows


def starts_by_loop(ids: list[list[int]], T: int) -> tuple[list[int], list[int]]:
    queries, keys = [0], [0]
    for row in ids:
        S = len(row)
        for position, name in enumerate(row):
            if position and name != row[position - 1]:
                queries.append(queries[-1])
                keys.append(keys[-1])
            keys[-1] += 1
            queries[-1] += position >= S - T
        queries.append(queries[-1])
        keys.append(keys[-1])
    return [0, *queries[:-1]], [0, *keys[:-1]]


@given(rows=st.integers(1, 4), S=st.integers(1, 12), data=st.data())
def test_documents_begin_where_a_loop_finds_them_when_packed(rows: int, S: int, data: st.DataObject) -> None:
    T = data.draw(st.integers(1, S))
    steps = st.lists(st.integers(0, 1), min_size=S, max_size=S)
    ids_BS = torch.tensor([data.draw(steps) for _ in range(rows)]).cumsum(1)
    packed = pack_documents(ids_BS, T)
    assert packed is not None
    queries, keys = starts_by_loop(ids_BS.tolist(), T)
    assert (packed.query_starts.tolist(), packed.key_starts.tolist()) == (queries, keys)
    assert packed.longest_query == max(end - start for start, end in itertools.pairwise(queries))
    assert packed.longest_key == max(end - start for start, end in itertools.pairwise(keys))
    assert packed.query_starts.dtype == packed.key_starts.dtype == torch.int32


def test_nothing_is_packed_when_a_document_goes_on_after_another() -> None:
    assert pack_documents(torch.tensor([[0, 0, 1], [0, 1, 0]]), 3) is None


def test_rows_begin_at_multiples_of_their_length_when_packed() -> None:
    packed = pack_rows(3, 2, 5, torch.device("cpu"))
    assert packed.query_starts.tolist() == [0, 2, 4, 6]
    assert packed.key_starts.tolist() == [0, 5, 10, 15]
    assert (packed.longest_query, packed.longest_key) == (2, 5)
