"""What queries see, as written down by hand."""

from __future__ import annotations

import torch

from llm.attention import AttentionMask, Visibility, attention_backend
from llm.attention.masks import visible_keys

CPU = torch.device("cpu")


def test_queries_see_their_window_of_their_document_when_earlier_keys_are_cached() -> None:
    ids_BS = torch.tensor([[5, 5, 5, 5], [0, 0, 5, 5]])
    seen = visible_keys(Visibility(2, 4, ids_BS, 3, torch.float32, CPU))
    assert seen.int().tolist() == [[[1, 1, 1, 0], [0, 1, 1, 1]], [[0, 0, 1, 0], [0, 0, 1, 1]]]


def test_mask_is_left_to_the_kernel_when_plainly_causal() -> None:
    for name in ("sdpa", "varlen"):
        for window in (None, 8, 9):
            mask = attention_backend(name).prepare(Visibility(8, 8, None, window, torch.float32, CPU))
            assert mask == AttentionMask(is_causal=True)


def test_mask_is_none_when_one_query_sees_all_keys_of_a_cache() -> None:
    mask = attention_backend("sdpa").prepare(Visibility(1, 8, None, None, torch.float32, CPU))
    assert mask == AttentionMask(is_causal=False)


def test_bias_hides_documents_when_there_are_two() -> None:
    visibility = Visibility(3, 3, torch.tensor([[3, 3, 1]]), None, torch.float32, CPU)
    bias = attention_backend("sdpa").prepare(visibility).bias
    assert bias is not None
    expected = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    torch.testing.assert_close(bias, torch.where(expected, 0.0, -torch.inf)[None, None])
