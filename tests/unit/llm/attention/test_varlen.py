"""How torch's kernels are called: for packed documents by a loop with the signature of torch's own function."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from llm.attention import AttentionMask, ScoreRule, Visibility, attention_backend
from llm.attention.packing import pack_documents
from llm.attention.varlen import attend_packed
from llm.errors import AttentionBackendError
from llm.memory import SHORT_ROW_TOKENS

CPU = torch.device("cpu")
RULE = ScoreRule(scale=0.3, softcap=None)
TOLERANCE = 2e-2  # bf16: 8 bits, so 2^-7 and a rounding


def loop_over_documents(*arguments: Any, **options: Any) -> Tensor:
    """`varlen_attn` as torch documents it; the last query of a document stands at its last key."""
    given = _SIGNATURE.bind(*arguments, **options).arguments
    q, k, v = given["query"], given["key"], given["value"]
    left, right = given["window_size"]
    out = torch.empty_like(q)
    starts = given["cu_seq_q"].tolist(), given["cu_seq_k"].tolist()
    for begin, end, first_key, end_key in zip(
        starts[0][:-1], starts[0][1:], starts[1][:-1], starts[1][1:], strict=True
    ):
        queries, keys = end - begin, end_key - first_key
        assert queries <= given["max_q"]
        assert keys <= given["max_k"]
        behind = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        seen = (behind >= -right) & ((behind <= left) if left >= 0 else True)
        part = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1) for x in (q[begin:end], k[first_key:end_key], v[first_key:end_key])),
            attn_mask=seen,
            scale=given["scale"],
            enable_gqa=given["enable_gqa"],
        )
        out[begin:end] = part.transpose(0, 1)
    return out


_SIGNATURE = inspect.signature(torch_varlen.varlen_attn)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize(("T", "S"), [(12, 12), (1, 12), (5, 12)])
@pytest.mark.parametrize("documents", [False, True])
def test_packed_documents_equal_eager_when_the_kernel_is_a_loop(
    monkeypatch: pytest.MonkeyPatch, documents: bool, T: int, S: int, window: int | None
) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", loop_over_documents)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, h, 8, generator=generator).bfloat16() for n, h in ((T, 4), (S, 2), (S, 2)))
    ids_BS = torch.tensor([[0] * 3 + [1] * 9, [0] * 6 + [1] * 4 + [2] * 2]) if documents else None
    packed = None if ids_BS is None else pack_documents(ids_BS, T)
    actual = attend_packed("varlen", q, k, v, AttentionMask(is_causal=True, packed=packed, window=window), RULE)
    eager = attention_backend("eager")
    expected = eager.attend(q, k, v, eager.prepare(Visibility(T, S, ids_BS, window, torch.bfloat16, CPU)), RULE)
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_queries_are_refused_when_the_kernel_for_gpus_cannot_read_them() -> None:
    q = torch.zeros(1, 3, 1, 8)
    with pytest.raises(AttentionBackendError) as error:
        attend_packed("varlen", q, q, q, AttentionMask(is_causal=True), RULE)
    assert str(error.value) == (
        "model.attention is 'varlen', which cannot be used: the queries are float32, and its kernel for GPUs reads "
        "float16 and bfloat16. Use train.precision bf16, or sdpa or auto."
    )


def test_rows_are_one_plain_call_when_each_is_one_document() -> None:
    ids_BT = torch.tensor([[0] * 300, [4] * 300])
    mask = attention_backend("varlen").prepare(Visibility(300, 300, ids_BT, None, torch.float32, CPU))
    assert mask == AttentionMask(is_causal=True)


def test_rows_get_the_bias_of_sdpa_when_short_and_rectangles_when_long() -> None:
    for length, tiled in ((SHORT_ROW_TOKENS, False), (SHORT_ROW_TOKENS + 1, True)):
        ids_BT = (torch.arange(length) // 100)[None]
        mask = attention_backend("varlen").prepare(Visibility(length, length, ids_BT, None, torch.float32, CPU))
        assert (mask.tiles is not None, mask.bias is None) == (tiled, tiled)


@pytest.mark.parametrize("name", ["sdpa", "varlen"])
def test_keys_are_not_copied_out_when_grouped(name: str) -> None:
    backend = attention_backend(name)
    q, k, v = (torch.randn(2, 300, heads, 8).requires_grad_() for heads in (8, 1, 1))
    ids_BT = (torch.arange(300) // 70).repeat(2, 1)
    mask = backend.prepare(Visibility(300, 300, ids_BT, None, torch.float32, CPU))
    with torch.profiler.profile(record_shapes=True) as profile:
        backend.attend(q, k, v, mask, RULE).sum().backward()
    kernels = [event for event in profile.events() if "flash_attention" in event.name]
    key_shapes = [event.input_shapes[2 if "backward" in event.name.lower() else 1] for event in kernels]
    assert kernels
    assert {shape[1] for shape in key_shapes if shape} == {1}
