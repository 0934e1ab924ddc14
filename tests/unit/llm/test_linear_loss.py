"""The loss that never holds all logits, against the one that does: values, gradients, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llm.loss import LossRule, LossSums, cross_entropy_sums, linear_cross_entropy_sums

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}
"""Relative to the largest number: fp32 sums in another order; bf16 products rounded in another order."""
ROWS, WIDTH, VOCABULARY = 13, 8, 37

RULES = {
    "plain": LossRule(),
    "scaled": LossRule(scale=0.25),
    "capped": LossRule(scale=2.0, softcap=3.0),
    "z-loss": LossRule(z_loss=0.1),
    "all": LossRule(scale=0.5, softcap=2.0, z_loss=0.1),
}

Example = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def example(dtype: torch.dtype = torch.float32) -> Example:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (1, ROWS), generator=generator)
    weights = torch.rand(1, ROWS, generator=generator)
    weights[0, ::4] = 0.0
    return hidden, weight, targets, weights


def plain(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    rule: LossRule = LossRule(),  # noqa: B008 - a tuple of constants
) -> LossSums:
    return cross_entropy_sums(rule.logits(F.linear(hidden, weight).float()), targets, weights, rule.z_loss)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    gap = (found.double() - wanted.double()).abs().max()
    return bool(gap <= TOLERANCE[wanted.dtype] * wanted.double().abs().max())


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "bf16"])
@pytest.mark.parametrize("rows", [1, 5, ROWS, 1000])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_sums_and_gradients_equal_those_over_all_logits(rule: LossRule, rows: int, dtype: torch.dtype) -> None:
    hidden, weight, targets, weights = example(dtype)
    found = linear_cross_entropy_sums(hidden, weight, targets, weights, rule, rows)
    wanted = plain(hidden, weight, targets, weights, rule)
    assert found.terms.keys() == wanted.terms.keys() == ({"z_loss"} if rule.z_loss else set())
    for name, term in found.terms.items():
        assert term.item() == pytest.approx(wanted.terms[name].item(), rel=1e-6)
    assert found.objective_sum.item() == pytest.approx(wanted.objective_sum.item(), rel=1e-6)
    assert found.loss_sum.item() == pytest.approx(wanted.loss_sum.item(), rel=1e-6)
    assert torch.equal(found.weight_sum, wanted.weight_sum)
    scale = 0.37
    for one, other in zip(
        torch.autograd.grad(found.objective_sum * scale, [hidden, weight]),
        torch.autograd.grad(wanted.objective_sum * scale, [hidden, weight]),
        strict=True,
    ):
        assert one.dtype == other.dtype == dtype
        assert close(one, other)


def test_position_changes_nothing_when_its_weight_is_zero() -> None:
    hidden, weight, targets, weights = example()
    altered = hidden.detach().clone()
    altered[weights == 0] = 1e30
    altered.requires_grad_()
    found = linear_cross_entropy_sums(altered, weight, targets.masked_fill(weights == 0, -100), weights)
    assert torch.equal(found.loss_sum, linear_cross_entropy_sums(hidden, weight, targets, weights).loss_sum)
    (gradient,) = torch.autograd.grad(found.objective_sum, altered)
    assert torch.equal(gradient[weights == 0], torch.zeros(int((weights == 0).sum()), WIDTH))


@pytest.mark.parametrize("frozen", [0, 1], ids=["hidden", "weight"])
def test_gradient_is_right_when_the_other_side_is_frozen(frozen: int) -> None:
    inputs = list(example())
    inputs[frozen] = inputs[frozen].detach()
    moving = inputs[1 - frozen]
    (found,) = torch.autograd.grad(linear_cross_entropy_sums(*inputs, chunk_rows=5).objective_sum, moving)
    (wanted,) = torch.autograd.grad(plain(*inputs).objective_sum, moving)
    assert close(found, wanted)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return result


def test_logits_of_all_positions_are_never_held() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 4096, 4, generator=generator).requires_grad_()
    weight = torch.randn(512, 4, generator=generator).requires_grad_()
    targets = torch.randint(0, 512, (1, 4096), generator=generator)
    limit = 1 << 16
    with Largest() as largest:
        linear_cross_entropy_sums(
            hidden, weight, targets, torch.ones(1, 4096), chunk_rows=limit // (4 * len(weight))
        ).objective_sum.backward()
    assert 0 < largest.bytes <= limit  # all logits are 128 times as much
    assert weight.grad is not None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradients_are_made_when_none_are_wanted(mode: type[torch.no_grad]) -> None:
    hidden, weight, targets, weights = example()
    limit = hidden.nbytes // 2
    with mode(), Largest() as largest:
        found = linear_cross_entropy_sums(hidden, weight, targets, weights, chunk_rows=1)
    assert 0 < largest.bytes <= limit  # one row of logits; the gradients of both would be more
    assert found.loss_sum.item() == pytest.approx(plain(hidden, weight, targets, weights).loss_sum.item(), rel=1e-6)


def test_both_gradients_are_scaled_alike_when_the_scale_is_not_a_bf16_number() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 512, 64, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(256, 64, generator=generator).bfloat16().requires_grad_()
    targets, weights = torch.randint(0, 256, (1, 512), generator=generator), torch.ones(1, 512)
    whole = torch.autograd.grad(
        linear_cross_entropy_sums(hidden, weight, targets, weights).objective_sum, [hidden, weight]
    )
    scale = 1 / 8160
    scaled = torch.autograd.grad(
        linear_cross_entropy_sums(hidden, weight, targets, weights).objective_sum * scale, [hidden, weight]
    )
    for one, other in zip(scaled, whole, strict=True):
        wanted = other.double() * scale
        ratio = float((one.double() * wanted).sum() / wanted.square().sum())
        assert ratio == pytest.approx(1.0, abs=2**-9 + 1e-4)  # bf16 rounds the product once more, by half a place


@pytest.mark.parametrize("divisor", [7, 13])
def test_gradients_keep_their_size_when_the_scale_of_logits_is_not_a_bf16_number(divisor: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 512, 64, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(256, 64, generator=generator).bfloat16().requires_grad_()
    targets, weights = torch.randint(0, 256, (1, 512), generator=generator), torch.ones(1, 512)
    wide = [each.detach().double().requires_grad_() for each in (hidden, weight)]
    rule = LossRule(scale=1 / divisor)
    found = linear_cross_entropy_sums(hidden, weight, targets, weights, rule).objective_sum
    wanted = F.cross_entropy(F.linear(*wide)[0] / divisor, targets[0], reduction="sum")
    for one, other in zip(torch.autograd.grad(found, [hidden, weight]), torch.autograd.grad(wanted, wide), strict=True):
        ratio = float((one.double() * other).sum() / other.square().sum())
        assert ratio == pytest.approx(1.0, abs=5e-4)  # errors of single numbers, up to 2^-9, cancel
