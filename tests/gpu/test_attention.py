"""Attention kernels of a GPU against the eager reference on it, gradients included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm.attention import AttentionNeeds, Backend, ScoreRule, Visibility, attention_backend, resolve_attention
from llm.errors import AttentionBackendError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

B, K = 2, 32
TOLERANCE = 3e-2  # bf16 keeps 8 bits: 2^-7 of values up to 3, and kernels round the weights, unlike the reference
GRADIENT_TOLERANCE = 1e-1  # sums over up to 300 queries and all heads of a group
KERNELS = ["sdpa", "varlen", "flex", "flash3", "flash4"]


def serving(name: str, **changes: Any) -> Backend:
    """The backend, or a skip that says why this machine cannot run it."""
    given = {"device_type": "cuda", "head_size": K, "training": True, "dtype": torch.bfloat16} | changes
    try:
        return attention_backend(resolve_attention(name, AttentionNeeds(**given)).name)
    except AttentionBackendError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    torch.compiler.reset()  # each test compiles for shapes of its own, and torch has a limit of them
    yield
    if getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)() is not None:
        torch.nn.attention.restore_flash_attention_impl()


def random_heads(T: int, S: int, H: int, G: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    draw = torch.Generator().manual_seed(T + H)
    shapes = [(B, T, H, K), (B, S, G, K), (B, S, G, K)]
    return [torch.randn(shape, generator=draw).cuda().to(dtype).requires_grad_() for shape in shapes]


def document_ids(kind: str, S: int) -> Tensor | None:
    position = torch.arange(S, device="cuda")
    if "documents" in kind:
        return torch.stack([position // 90, (position >= S // 3).long() * 7])
    if "padding" in kind:
        return torch.stack([(position >= S // 4).long(), torch.ones_like(position)])
    return None


def results(backend: Backend, visibility: Visibility, heads: list[Tensor], rule: ScoreRule) -> list[Tensor]:
    draw = torch.Generator().manual_seed(5)
    upstream = torch.randn(heads[0].shape, generator=draw).cuda().to(heads[0].dtype)
    out = backend.attend(heads[0], heads[1], heads[2], backend.prepare(visibility), rule)
    return [out, *torch.autograd.grad(out, heads, upstream)]


def assert_agreement(backend: Backend, visibility: Visibility, heads: list[Tensor], rule: ScoreRule) -> None:
    reference = results(attention_backend("eager"), visibility, heads, rule)
    actual = results(backend, visibility, heads, rule)
    assert actual[0].dtype == heads[0].dtype
    bounds = [TOLERANCE] + [GRADIENT_TOLERANCE] * 3
    for one, other, bound in zip(actual, reference, bounds, strict=True):
        torch.testing.assert_close(one, other, atol=bound, rtol=bound)


@pytest.mark.parametrize("kind", ["causal", "window", "documents", "documents window"])
@pytest.mark.parametrize(("H", "G"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("T", [33, 300])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_eager_with_gradients_when_masked(name: str, T: int, H: int, G: int, kind: str) -> None:
    window = 20 if "window" in kind else None
    visibility = Visibility(T, T, document_ids(kind, T), window, torch.bfloat16, torch.device("cuda"))
    assert_agreement(serving(name), visibility, random_heads(T, T, H, G), ScoreRule(0.2, None, None))


@pytest.mark.parametrize("kind", ["causal", "window", "padding"])
@pytest.mark.parametrize("T", [1, 33])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_eager_when_earlier_keys_come_from_a_cache(name: str, T: int, kind: str) -> None:
    window = 4 if "window" in kind else None
    visibility = Visibility(T, 130, document_ids(kind, 130), window, torch.bfloat16, torch.device("cuda"))
    backend, heads, rule = serving(name), random_heads(T, 130, 4, 2), ScoreRule(0.2, None, None)
    with torch.no_grad():
        one, other = (
            each.attend(heads[0], heads[1], heads[2], each.prepare(visibility), rule)
            for each in (backend, attention_backend("eager"))
        )
    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("kind", ["causal", "documents window"])
def test_flex_equals_eager_with_gradients_when_scores_are_capped(kind: str) -> None:
    window = 20 if "window" in kind else None
    visibility = Visibility(300, 300, document_ids(kind, 300), window, torch.bfloat16, torch.device("cuda"))
    backend = serving("flex", softcap=True)
    assert_agreement(backend, visibility, random_heads(300, 300, 4, 2), ScoreRule(0.2, 1.0, None))


def test_varlen_equals_sdpa_when_a_document_goes_on_after_another() -> None:
    ids = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0]], device="cuda")
    visibility = Visibility(5, 5, ids, None, torch.bfloat16, torch.device("cuda"))
    assert_agreement(serving("varlen"), visibility, random_heads(5, 5, 4, 2), ScoreRule(0.2, None, None))


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_are_the_same_when_layers_are_computed_again(name: str) -> None:
    backend, heads = serving(name), random_heads(300, 300, 4, 2)
    visibility = Visibility(300, 300, document_ids("documents", 300), None, torch.bfloat16, torch.device("cuda"))
    mask, rule = backend.prepare(visibility), ScoreRule(0.2, None, None)

    def layer(*inputs: Any) -> Tensor:
        return backend.attend(*inputs, rule)

    again = checkpoint(layer, *heads, mask, use_reentrant=False)
    kept = layer(*heads, mask)
    for one, other in zip(torch.autograd.grad(kept.sum(), heads), torch.autograd.grad(again.sum(), heads), strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def test_host_waits_once_when_documents_are_packed() -> None:
    backend, heads = serving("varlen"), random_heads(300, 300, 4, 2)
    visibility = Visibility(300, 300, document_ids("documents", 300), None, torch.bfloat16, torch.device("cuda"))
    mask = backend.prepare(visibility)
    torch.cuda.set_sync_debug_mode("error")
    try:
        backend.attend(heads[0], heads[1], heads[2], mask, ScoreRule(0.2, None, None)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["causal", "documents"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sdpa_never_holds_all_scores_when_heads_are_grouped(dtype: torch.dtype, kind: str) -> None:
    T, H, G = 2048, 16, 4
    heads, backend = random_heads(T, T, H, G, dtype), serving("sdpa", dtype=dtype)
    mask = backend.prepare(Visibility(T, T, document_ids(kind, T), None, dtype, torch.device("cuda")))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    backend.attend(heads[0], heads[1], heads[2], mask, ScoreRule(0.2, None, None)).sum().backward()
    scores_bytes = B * H * T * T * dtype.itemsize
    assert torch.cuda.max_memory_allocated() - before < scores_bytes / 2
