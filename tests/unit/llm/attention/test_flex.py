"""Masks of FlexAttention; its numbers are in test_agreement, its compiled kernel in tests/gpu."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from llm.attention import ScoreRule, Visibility, attention_backend
from llm.attention.masks import visible_keys

CPU = torch.device("cpu")


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("documents", [False, True])
def test_blocks_hold_what_is_visible_when_masked(documents: bool, window: int | None) -> None:
    ids = (torch.arange(300) // 77).repeat(2, 1) if documents else None
    visibility = Visibility(260, 300, ids, window, torch.float32, CPU)
    mask = attention_backend("flex").prepare(visibility)
    assert mask.block_mask is not None
    block_mask = mask.block_mask()
    rows = 2 if documents else 1
    held = create_mask(block_mask.mask_mod, rows, 1, 260, 300, device="cpu")[:, 0]
    assert torch.equal(held, visible_keys(visibility))
    blocks = torch.zeros(rows, 384, 384, dtype=torch.bool)
    blocks[:, :260, :300] = held
    seen = blocks.unflatten(1, (3, 128)).unflatten(3, (3, 128)).any(dim=4).any(dim=2)
    assert torch.equal(block_mask.to_dense()[:, 0].bool(), seen)


def test_blocks_are_made_once_when_they_depend_on_lengths_alone() -> None:
    flex, visibility = attention_backend("flex"), Visibility(130, 130, None, None, torch.float32, CPU)
    one, other = flex.prepare(visibility).block_mask, flex.prepare(visibility).block_mask
    assert one is not None
    assert other is not None
    assert one() is other()


def test_gradients_are_refused_by_torch_when_on_the_cpu() -> None:
    flex, q = attention_backend("flex"), torch.zeros(1, 8, 1, 16, requires_grad=True)
    mask = flex.prepare(Visibility(8, 8, None, None, torch.float32, CPU))
    with pytest.raises(Exception, match="FlexAttention does not support backward on CPU"):
        flex.attend(q, q, q, mask, ScoreRule(1.0, None, None))
