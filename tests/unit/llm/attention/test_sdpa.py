"""Which tensors torch's scaled_dot_product_attention is given, so that one of its fused kernels takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llm.attention import AttentionMask, ScoreRule, sdpa

B, T, H, G, K = 1, 8, 4, 2, 16


@pytest.mark.parametrize(
    ("device_type", "dtype", "biased", "shared"),
    [
        ("cpu", torch.float32, True, True),
        ("cpu", torch.bfloat16, False, True),
        ("cuda", torch.bfloat16, False, True),
        ("cuda", torch.bfloat16, True, False),
        ("cuda", torch.float32, False, False),
        ("cuda", torch.float32, True, False),
    ],
)
def test_heads_are_shared_when_a_kernel_of_torch_can(
    device_type: str, dtype: torch.dtype, biased: bool, shared: bool
) -> None:
    assert sdpa.shares_heads(device_type, dtype, biased=biased) == shared


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_kernel_is_given_keys_of_every_head_when_no_kernel_of_the_gpu_shares_them(
    monkeypatch: pytest.MonkeyPatch, biased: bool, autocast: bool
) -> None:
    seen: list[tuple[int, bool]] = []

    def watch(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        assert key.shape == value.shape
        seen.append((key.shape[1], options["enable_gqa"]))
        return query

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    # torch turns its autocast for CUDA off where there is no CUDA
    monkeypatch.setattr(sdpa, "autocast_dtype", lambda device_type: torch.bfloat16 if autocast else None)
    with FakeTensorMode():
        q, k = torch.empty(B, T, H, K, device="cuda"), torch.empty(B, T, G, K, device="cuda")
        bias = torch.empty(B, 1, T, T, device="cuda") if biased else None
        sdpa.attend(q, k, k, AttentionMask(is_causal=not biased, bias=bias), ScoreRule(0.2, None))
    assert seen == [(G, True) if autocast and not biased else (H, False)]
