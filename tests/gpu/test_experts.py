"""Mixtures of experts on a GPU: the grouped form against the reference, without a wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from llm.expert_backends import BACKENDS, grouped_mm_serves

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative to the largest number. fp32: sums of some 200 terms in another order. bf16: 8 bits, a few roundings."""
TOKENS, D, F_, E, C = 200, 64, 96, 6, 2
HOPPER = (9, 0)


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """x, weights, gate_up, down."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(TOKENS, D), (TOKENS, C), (E, 2 * F_, D), (E, D, F_)]
    dtypes = [dtype, torch.float32, dtype, dtype]
    return [
        (torch.randn(shape, generator=generator) * 0.3).cuda().to(each).requires_grad_()
        for shape, each in zip(shapes, dtypes, strict=True)
    ]


def chosen() -> Tensor:
    """Experts 1 and 4 have no token."""
    few = torch.tensor([0, 2, 3, 5])
    scores = torch.rand(TOKENS, len(few), generator=torch.Generator().manual_seed(1))
    return few[scores.topk(C).indices].cuda()


def forward_and_backward(backend: str, given: list[Tensor], experts_NC: Tensor) -> tuple[Tensor, ...]:
    x_ND, weights_NC, gate_up, down_EDF = given
    out_ND = BACKENDS[backend](x_ND, experts_NC, weights_NC, gate_up, down_EDF, "silu")
    return (out_ND, *torch.autograd.grad(out_ND.float().square().sum(), given))


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "bf16"])
def test_grouped_equals_eager_with_gradients_when_experts_are_empty(dtype: torch.dtype) -> None:
    given, experts_NC = inputs(dtype), chosen()
    eager, grouped = (forward_and_backward(backend, given, experts_NC) for backend in ("eager", "grouped"))
    for mine, other in zip(grouped, eager, strict=True):
        gap = (mine.double() - other.double()).abs().max()
        assert gap <= TOLERANCE[dtype] * other.double().abs().max()
    for gradient in grouped[-2:]:
        assert not gradient[[1, 4]].any()


def test_results_are_bit_equal_when_repeated() -> None:
    given, experts_NC = inputs(torch.bfloat16), chosen()
    first, second = (forward_and_backward("grouped", given, experts_NC) for _ in range(2))
    for mine, other in zip(first, second, strict=True):
        assert torch.equal(mine, other)


def test_grouped_waits_for_nothing_when_torch_has_a_kernel_for_it() -> None:
    if torch.cuda.get_device_capability() < HOPPER:
        pytest.skip("torch's grouped_mm copies the ends of the groups to the host before Hopper")
    given, experts_NC = inputs(torch.bfloat16), chosen()
    assert grouped_mm_serves(given[0], given[2])
    forward_and_backward("grouped", given, experts_NC)  # kernels are loaded, which may wait
    with waiting_is_an_error():
        forward_and_backward("grouped", given, experts_NC)
