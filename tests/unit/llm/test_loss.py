"""Cross-entropy sums: values, gradients, and what weight zero leaves out."""

from __future__ import annotations

import math

import pytest
import torch

from llm.loss import cross_entropy_sums

TOLERANCE = 1e-6
"""fp32 sums of a dozen terms."""


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=generator)
    targets = torch.randint(0, 7, (2, 3), generator=generator)
    return logits, targets, torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0]])


def test_sums_equal_a_loop_over_numbers_when_weighted() -> None:
    logits, targets, weights = example()
    expected = 0.0
    for b, t in ((b, t) for b in range(2) for t in range(3)):
        normaliser = sum(math.exp(score) for score in logits[b, t].tolist())
        probability = math.exp(float(logits[b, t, targets[b, t]])) / normaliser
        expected -= float(weights[b, t]) * math.log(probability)
    sums = cross_entropy_sums(logits, targets, weights)
    assert float(sums.loss_sum) == pytest.approx(expected, rel=TOLERANCE)
    assert float(sums.weight_sum) == 3.5


@pytest.mark.parametrize("target", [-1, -100, 7, 10**6])
def test_position_changes_nothing_when_its_weight_is_zero(target: int) -> None:
    logits, targets, weights = example()
    altered_targets, altered_logits = targets.clone(), logits.clone()
    altered_targets[weights == 0] = target
    altered_logits[weights == 0] = 1e30
    altered_logits.requires_grad_()
    sums = cross_entropy_sums(altered_logits, altered_targets, weights)
    assert torch.equal(sums.loss_sum, cross_entropy_sums(logits, targets, weights).loss_sum)
    (gradient,) = torch.autograd.grad(sums.objective_sum, altered_logits)
    assert torch.equal(gradient[weights == 0], torch.zeros(2, 7))
    assert gradient[weights > 0].abs().min() > 0


def test_sums_are_zero_with_zero_gradient_when_no_target_counts() -> None:
    logits, targets, weights = example()
    logits.requires_grad_()
    sums = cross_entropy_sums(logits, targets, torch.zeros_like(weights))
    (gradient,) = torch.autograd.grad(sums.objective_sum, logits)
    assert (sums.loss_sum.item(), sums.weight_sum.item()) == (0.0, 0.0)
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_loss_is_fp32_when_logits_are_bf16() -> None:
    logits, targets, weights = example()
    narrow = logits.bfloat16()
    sums = cross_entropy_sums(narrow, targets, weights)
    assert sums.loss_sum.dtype == sums.weight_sum.dtype == torch.float32
    assert torch.equal(sums.loss_sum, cross_entropy_sums(narrow.float(), targets, weights).loss_sum)
