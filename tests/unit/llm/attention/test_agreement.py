"""Every backend that a CPU can run against the eager one, gradients included, whatever queries may see."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.utils import apply_to_tensors_only
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._higher_order_ops.flex_attention import math_attention
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from llm.attention import Backend, ScoreRule, Visibility, attention_backend, sdpa
from llm.attention.flex import attend_with
from llm.attention.varlen import prepare_tiles

CPU = torch.device("cpu")
B, K = 2, 8
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
"""fp32: sums of at most 300 terms of size 1 in another order. bf16: 8 bits, so 2^-7 of values up to 3, and a rounding
of the weights that the reference does not make."""
GRADIENT_TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 8e-2}
"""Gradients of keys and values are sums over up to 300 queries and all heads of a group, so larger than the output."""


def dense_flex(
    q: Tensor, k: Tensor, v: Tensor, *, score_mod: Any, block_mask: BlockMask, scale: float, enable_gqa: bool
) -> Tensor:
    """What torch defines FlexAttention to be, with all scores, and with gradients, which its CPU kernel has not."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    score_mod = score_mod or (lambda score, *_: score)
    return math_attention(q, k, v, score_mod, block_mask.as_tuple(), scale, {"BACKEND": "AUTO"}, (), ())[0]


BACKENDS = {
    "sdpa": attention_backend("sdpa"),
    "sdpa copying": attention_backend("sdpa")._replace(attend=partial(sdpa.attend_with, shared=False)),
    "varlen": attention_backend("varlen"),
    "tiles": attention_backend("varlen")._replace(prepare=prepare_tiles),
    "flex": attention_backend("flex")._replace(attend=partial(attend_with, dense_flex)),
}


def random_heads(T: int, S: int, H: int, G: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T * 1000 + H * 10 + G)
    shapes = [(B, T, H, K), (B, S, G, K), (B, S, G, K)]
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return q, k, v


def document_ids(kind: str, S: int) -> Tensor | None:
    position = torch.arange(S)
    if "documents" in kind:  # short and long ones beside each other, and another layout in each row
        return torch.stack([position // 5 if S < 100 else position // 90, (position >= S // 3).long() * 7])
    if "padding" in kind:
        return torch.stack([(position >= S // 4).long(), torch.ones(S, dtype=torch.long)])
    return None


def results(backend: Backend, visibility: Visibility, heads: tuple[Tensor, ...], rule: ScoreRule) -> list[Tensor]:
    upstream = torch.randn(heads[0].shape, generator=torch.Generator().manual_seed(5)).to(heads[0].dtype)
    out = backend.attend(heads[0], heads[1], heads[2], backend.prepare(visibility), rule)
    assert out.dtype == heads[0].dtype
    return [out, *torch.autograd.grad(out, heads, upstream)]


def assert_agreement(
    name: str, visibility: Visibility, heads: tuple[Tensor, Tensor, Tensor], softcap: float | None = None
) -> None:
    rule = ScoreRule(scale=0.3, softcap=softcap)
    reference = results(attention_backend("eager"), visibility, heads, rule)
    out, *grads = results(BACKENDS[name], visibility, heads, rule)
    bound, grad_bound = TOLERANCE[heads[0].dtype], GRADIENT_TOLERANCE[heads[0].dtype]
    torch.testing.assert_close(out, reference[0], atol=bound, rtol=bound)
    for actual, expected in zip(grads, reference[1:], strict=True):
        torch.testing.assert_close(actual, expected, atol=grad_bound, rtol=grad_bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["causal", "window", "documents", "documents window"])
@pytest.mark.parametrize(("H", "G"), [(4, 4), (4, 2), (8, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("T", [1, 7, 33, 129, 300])
@pytest.mark.parametrize("name", BACKENDS)
def test_backend_equals_eager_with_gradients_when_masked(
    name: str, T: int, H: int, G: int, kind: str, dtype: torch.dtype
) -> None:
    window = 20 if "window" in kind else None
    visibility = Visibility(T, T, document_ids(kind, T), window, dtype, CPU)
    assert_agreement(name, visibility, random_heads(T, T, H, G, dtype))


@pytest.mark.parametrize("kind", ["causal", "window", "padding", "padding window"])
@pytest.mark.parametrize(("T", "S"), [(1, 9), (3, 9), (1, 130), (33, 130)])
@pytest.mark.parametrize("name", BACKENDS)
def test_backend_equals_eager_when_earlier_keys_come_from_a_cache(name: str, T: int, S: int, kind: str) -> None:
    window = 4 if "window" in kind else None
    visibility = Visibility(T, S, document_ids(kind, S), window, torch.float32, CPU)
    assert_agreement(name, visibility, random_heads(T, S, 4, 2, torch.float32))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("window", [1, 2, 19, 20, 21])
def test_backend_equals_eager_when_the_window_is_at_its_bounds(name: str, window: int) -> None:
    visibility = Visibility(20, 20, None, window, torch.float32, CPU)
    assert_agreement(name, visibility, random_heads(20, 20, 2, 1, torch.float32))


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_equals_eager_when_a_document_goes_on_after_another(name: str) -> None:
    ids_BT = torch.tensor([[1, 1, 0, 0, 1, 1, 1], [0, 1, 2, 2, 2, 0, 0]])
    visibility = Visibility(7, 7, ids_BT, 3, torch.float32, CPU)
    assert_agreement(name, visibility, random_heads(7, 7, 2, 1, torch.float32))


@pytest.mark.parametrize("kind", ["causal", "documents window"])
def test_flex_equals_eager_when_scores_are_capped(kind: str) -> None:
    visibility = Visibility(33, 33, document_ids(kind, 33), 9 if "window" in kind else None, torch.float32, CPU)
    assert_agreement("flex", visibility, random_heads(33, 33, 4, 2, torch.float32), softcap=0.5)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=40),
    T=st.integers(2, 200),
    window=st.none() | st.integers(1, 220),
)
def test_tiles_equal_eager_when_documents_have_any_lengths(lengths: list[int], T: int, window: int | None) -> None:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ids_BT = torch.cat([ids, torch.full((B * T,), len(lengths))])[: B * T].reshape(B, T)
    visibility = Visibility(T, T, ids_BT.int(), window, torch.float32, CPU)
    assert_agreement("tiles", visibility, random_heads(T, T, 2, 1, torch.float32))


@pytest.mark.parametrize("name", ["sdpa", "tiles"])
def test_result_keeps_the_dtype_of_the_queries_when_autocast_narrows_them(name: str) -> None:
    backend = BACKENDS[name]
    ids_BT = document_ids("documents", 33)
    q, k, v = random_heads(33, 33, 4, 2, torch.float32)
    mask = backend.prepare(Visibility(33, 33, ids_BT, None, torch.float32, CPU))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = backend.attend(q, k, v.bfloat16(), mask, ScoreRule(0.3, None, None))
    exact = results(
        attention_backend("eager"),
        Visibility(33, 33, ids_BT, None, torch.float32, CPU),
        (q, k, v),
        ScoreRule(0.3, None, None),
    )[0]
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, exact, atol=TOLERANCE[torch.bfloat16], rtol=TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_are_the_same_when_layers_are_computed_again(name: str) -> None:
    backend, heads = BACKENDS[name], random_heads(129, 129, 4, 2, torch.float32)
    mask = backend.prepare(Visibility(129, 129, document_ids("documents", 129), 30, torch.float32, CPU))
    rule = ScoreRule(0.3, None, None)

    def layer(*inputs: Any) -> Tensor:
        return backend.attend(*inputs, rule)

    kept, again = layer(*heads, mask), checkpoint(layer, *heads, mask, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(kept.sum(), heads), torch.autograd.grad(again.sum(), heads), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["causal", "window", "documents", "documents window", "padding"])
@pytest.mark.parametrize("name", ["eager", *BACKENDS])
def test_masks_pass_what_deepspeed_does_to_inputs_when_hooks_walk_over_them(name: str, kind: str) -> None:
    def warn(value: object) -> str:
        raise AssertionError(f"DeepSpeed would warn of {type(value)}")

    backend = BACKENDS.get(name) or attention_backend(name)
    T = 16 if kind == "padding" else 129
    visibility = Visibility(T, 129, document_ids(kind, 129), 30 if "window" in kind else None, torch.float32, CPU)
    mask = backend.prepare(visibility)
    walked = apply_to_tensors_only(Tensor.clone, mask, warning_msg_fn=warn)
    heads = random_heads(T, 129, 4, 2, torch.float32)
    rule = ScoreRule(0.3, None, None)
    assert type(walked) is type(mask)
    assert torch.equal(backend.attend(*heads, mask, rule), backend.attend(*heads, walked, rule))
