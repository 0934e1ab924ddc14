"""Parameters and operations of a mixture of experts."""

from __future__ import annotations

import torch.nn.functional as F

from llm.expert_shapes import count_expert_parameters, expert_flops_per_token, expert_parameter_shapes
from llm.experts import MixtureOfExperts

MIXTRAL_8X7B = {"hidden_size": 4096, "expert_size": 14336, "num_experts": 8}
QWEN3_30B_A3B = {"hidden_size": 2048, "expert_size": 768, "num_experts": 128}


def test_shapes_are_those_of_the_module() -> None:
    layer = MixtureOfExperts(
        hidden_size=16,
        expert_size=24,
        num_experts=5,
        experts_per_token=2,
        normalize_weights=True,
        activation=F.silu,
        backend="grouped",
    )
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert list(shapes.items()) == list(expert_parameter_shapes(16, 24, 5).items())
    assert sum(parameter.numel() for parameter in layer.parameters()) == count_expert_parameters(16, 24, 5, 2).total


def test_published_models_have_the_parameters_that_they_are_named_after() -> None:
    mixtral = count_expert_parameters(**MIXTRAL_8X7B, experts_per_token=2)
    assert mixtral.total == 8 * 3 * 4096 * 14336 + 8 * 4096  # of 46.7 B in 32 layers
    assert mixtral.active == 2 * 3 * 4096 * 14336 + 8 * 4096  # of 12.9 B
    qwen3 = count_expert_parameters(**QWEN3_30B_A3B, experts_per_token=8)
    assert 29e9 < 48 * qwen3.total < 30.5e9
    assert 1.8e9 < 48 * qwen3.active < 3.3e9


def test_all_parameters_are_active_when_every_expert_is_chosen() -> None:
    count = count_expert_parameters(16, 24, 5, 5)
    assert count.active == count.total


def test_operations_are_six_per_active_parameter() -> None:
    assert expert_flops_per_token(16, 24, 5, 2) == 6 * (5 * 16 + 2 * 3 * 16 * 24)
