"""Fused elementwise parts against their obvious twins: values, gradients, what is kept, and strange shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llm.fused import (
    ACTIVATIONS,
    gated,
    plain_gated,
    plain_rms_norm,
    plain_rotated_heads,
    rms_norm,
    rotated_heads,
)
from llm.rotary import Rotary, rotary_tables

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Relative to the largest number: fp32 sums in another order; bf16 keeps 8 bits and is rounded once less or more."""
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
Parts = tuple[Tensor, ...]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


def assert_agrees(fused: Callable[..., Parts], plain: Callable[..., Parts], *inputs: Tensor) -> None:
    """Values, and gradients for random gradients of the outputs, are those of the twin in fp32."""
    wide = [each.detach().float().requires_grad_() for each in inputs]
    found, wanted = fused(*inputs), plain(*wide)
    grads = [random(*each.shape, seed=index + 7).detach() for index, each in enumerate(wanted)]
    found_gradients = torch.autograd.grad(
        found, inputs, [grad.to(each.dtype) for grad, each in zip(grads, found, strict=True)]
    )
    for one, other in zip(
        (*found, *found_gradients), (*wanted, *torch.autograd.grad(wanted, wide, grads)), strict=True
    ):
        assert one.dtype == inputs[0].dtype
        assert (one.float() - other).abs().max() <= TOLERANCE[one.dtype] * other.abs().max()


@DTYPES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_agrees_with_its_twin(activation: str, dtype: torch.dtype) -> None:
    assert_agrees(
        lambda x: (gated(x, activation),), lambda x: (plain_gated(x, activation),), random(2, 5, 14, dtype=dtype)
    )


@DTYPES
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (6, 2), (3, 1)])
def test_rotated_heads_agree_with_their_twin(heads: int, groups: int, dtype: torch.dtype) -> None:
    rotary = rotary_tables(torch.tensor([[0, 1, 2, 900, 7]]), 8, 1e4)
    assert_agrees(
        lambda x: rotated_heads(x, rotary, heads, groups),
        lambda x: plain_rotated_heads(x, rotary, heads, groups),
        random(2, 5, heads + 2 * groups, 8, dtype=dtype),
    )


def test_rotated_heads_are_bit_equal_to_their_twin_when_heads_are_bf16() -> None:
    rotary = rotary_tables(torch.arange(50)[None] + 2000, 8, 1e4)
    x = random(1, 50, 4, 8, dtype=torch.bfloat16).detach()
    for one, other in zip(rotated_heads(x, rotary, 2, 1), plain_rotated_heads(x.float(), rotary, 2, 1), strict=True):
        assert torch.equal(one, other.bfloat16())


def test_rows_are_turned_by_positions_of_their_own() -> None:
    rotary = rotary_tables(torch.tensor([[0, 1, 2], [5, 6, 9]]), 8, 1e4)
    x = random(2, 3, 4, 8).detach()
    for row in range(2):
        own = Rotary(rotary.cos[row : row + 1], rotary.sin[row : row + 1])
        for one, other in zip(rotated_heads(x, rotary, 2, 1), rotated_heads(x[row : row + 1], own, 2, 1), strict=True):
            assert torch.equal(one[row : row + 1], other)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 5, 96), (7, 33)])
def test_norm_agrees_with_its_twin(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_agrees(
        lambda x, w: (rms_norm(x, w, 1e-5),),
        lambda x, w: (plain_rms_norm(x, w, 1e-5),),
        random(*shape, dtype=dtype),
        random(shape[-1], seed=3, dtype=dtype),
    )


@DTYPES
def test_norm_agrees_with_its_twin_when_its_input_is_a_slice_of_heads(dtype: torch.dtype) -> None:
    assert_agrees(
        lambda x, w: (rms_norm(x[:, :, 1:3], w, 1e-5),),
        lambda x, w: (plain_rms_norm(x[:, :, 1:3], w, 1e-5),),
        random(2, 3, 4, 8, dtype=dtype),
        random(8, seed=3, dtype=dtype),
    )


def test_norm_keeps_precision_when_numbers_are_fp64() -> None:
    x, weight = random(3, 8).detach().double(), random(8, seed=3).detach().double()
    assert torch.equal(rms_norm(x, weight, 1e-5), plain_rms_norm(x, weight, 1e-5))


def test_norm_is_finite_when_a_row_is_zero() -> None:
    x = torch.zeros(1, 8, requires_grad=True)
    normed = rms_norm(x, torch.ones(8), 1e-5)
    normed.sum().backward()
    assert torch.equal(normed, torch.zeros(1, 8))
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def kept_bytes(function: Callable[[], object]) -> int:
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values())


def test_gated_keeps_its_input_alone() -> None:
    x = random(2, 5, 14)
    assert kept_bytes(lambda: gated(x, "silu")) == x.nbytes


def test_rotated_heads_keep_the_tables_alone() -> None:
    rotary = rotary_tables(torch.arange(5)[None], 8, 1e4)
    x = random(2, 5, 4, 8)
    assert kept_bytes(lambda: rotated_heads(x, rotary, 2, 1)) == rotary.cos.nbytes + rotary.sin.nbytes


def test_norm_keeps_input_weight_and_a_factor_for_each_row() -> None:
    x, weight = random(6, 16), random(16, seed=1)
    assert kept_bytes(lambda: rms_norm(x, weight, 1e-5)) == x.nbytes + weight.nbytes + 6 * 4
