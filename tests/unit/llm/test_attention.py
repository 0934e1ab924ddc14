"""Attention backends against each other, and the eager one against a loop over single numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llm.attention import (
    AttentionMask,
    ResolvedAttention,
    attention_backend,
    causal_mask,
    document_mask,
    eager_attention,
    resolve_attention,
    sdpa_attention,
)
from llm.errors import AttentionBackendError

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""fp32: sums of at most 64 terms in another order. bf16: 8 bits, so 2^-7 and a rounding."""


def random_heads(T: int, S: int, H: int, G: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T * 1000 + H * 10 + G)
    shapes = [(2, T, H, 8), (2, S, G, 8), (2, S, G, 8)]
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return q, k, v


def make_mask(kind: str, T: int, dtype: torch.dtype) -> AttentionMask:
    if kind == "causal":
        return causal_mask(T, T, dtype, CPU)
    ids_BT = torch.stack([torch.arange(T) // 5, (torch.arange(T) >= T // 2).long()])
    return document_mask(ids_BT, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["causal", "documents"])
@pytest.mark.parametrize(("H", "G"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("T", [1, 7, 33])
def test_sdpa_equals_eager_with_gradients_when_masked(T: int, H: int, G: int, kind: str, dtype: torch.dtype) -> None:
    mask = make_mask(kind, T, dtype)
    heads = random_heads(T, T, H, G, dtype)
    upstream_BTHK = torch.randn(2, T, H, 8, generator=torch.Generator().manual_seed(5)).to(dtype)
    results = []
    for attend in (eager_attention, sdpa_attention):
        out_BTHK = attend(*heads, mask)
        results.append((out_BTHK, *torch.autograd.grad(out_BTHK, heads, upstream_BTHK)))
    for eager, sdpa in zip(*results, strict=True):
        assert sdpa.dtype == dtype
        torch.testing.assert_close(sdpa, eager, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_eager_equals_a_loop_over_numbers_when_heads_are_grouped() -> None:
    q, k, v = (heads.detach() for heads in random_heads(5, 5, 4, 2, torch.float32))
    expected = torch.zeros_like(q)
    for b, t, h in ((b, t, h) for b in range(2) for t in range(5) for h in range(4)):
        scores = [math.exp(float(q[b, t, h] @ k[b, s, h // 2]) / math.sqrt(8)) for s in range(t + 1)]
        for s, score in enumerate(scores):
            expected[b, t, h] += v[b, s, h // 2] * (score / sum(scores))
    actual = eager_attention(q, k, v, causal_mask(5, 5, torch.float32, CPU))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("new", [1, 3])
def test_last_queries_get_the_same_when_earlier_keys_come_from_a_cache(backend: str, new: int) -> None:
    attend = attention_backend(backend)
    q, k, v = random_heads(9, 9, 4, 2, torch.float32)
    whole = attend(q, k, v, causal_mask(9, 9, torch.float32, CPU))
    last = attend(q[:, -new:], k, v, causal_mask(new, 9, torch.float32, CPU))
    torch.testing.assert_close(last, whole[:, -new:], atol=1e-6, rtol=1e-6)


def test_mask_is_left_to_the_kernel_when_plainly_causal() -> None:
    assert causal_mask(8, 8, torch.float32, CPU) == AttentionMask(is_causal=True, bias=None)


def test_documents_hide_each_other_when_masked() -> None:
    bias = document_mask(torch.tensor([[3, 3, 1]]), torch.float32).bias
    assert bias is not None
    expected = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    torch.testing.assert_close(bias, torch.where(expected, 0.0, -torch.inf)[None, None])


def test_keys_are_not_copied_out_when_grouped() -> None:
    q, k, v = random_heads(16, 16, 8, 1, torch.float32)
    with torch.profiler.profile(record_shapes=True) as profile:
        sdpa_attention(q, k, v, causal_mask(16, 16, torch.float32, CPU))
    kernels = [event for event in profile.events() if "flash_attention" in event.name]
    assert kernels
    assert all(event.input_shapes[1] == [2, 1, 16, 8] for event in kernels)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "auto",
            ResolvedAttention("sdpa", "auto: torch's fused kernels run on every device and need no extra package"),
        ),
        ("eager", ResolvedAttention("eager", "asked for by name")),
        ("sdpa", ResolvedAttention("sdpa", "asked for by name")),
    ],
)
def test_name_resolves_with_a_reason_when_known(name: str, expected: ResolvedAttention) -> None:
    assert resolve_attention(name) == expected


def test_name_is_refused_when_unknown() -> None:
    with pytest.raises(AttentionBackendError) as error:
        resolve_attention("flash")
    assert str(error.value) == (
        "model.attention is 'flash', and no backend has that name. Use one of: auto, eager, sdpa."
    )


def test_auto_is_refused_when_not_resolved_before() -> None:
    with pytest.raises(AttentionBackendError) as error:
        attention_backend("auto")
    assert str(error.value) == (
        "attention backend 'auto' reached the model: it must be resolved once and logged before. "
        "Pass resolve_attention('auto').name."
    )
