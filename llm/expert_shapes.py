"""How large a mixture of experts is, and what a token costs in it. Imports no torch: `plan` needs it.

Legend: D model, E experts, C experts chosen per token, F hidden of one expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExpertParameterCount:
    """Parameters of one mixture of experts."""

    total: int
    """All that are held and updated: E * D + 3 * E * D * F."""
    active: int
    """Those that one token meets: the whole router and C experts, E * D + 3 * C * D * F."""


def expert_parameter_shapes(hidden_size: int, expert_size: int, num_experts: int) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of one `MixtureOfExperts` by its name, in the order in which the module registers them.

    Names and shapes are those of transformers 5's Qwen3MoeSparseMoeBlock and MixtralSparseMoeBlock. The first F rows of
    an expert's `gate_up_proj` are its gate, the others its up projection.

    Args:
        hidden_size: Width D of the residual stream.
        expert_size: Hidden width F of one expert.
        num_experts: E.
    """
    D, F, E = hidden_size, expert_size, num_experts
    return {"gate.weight": (E, D), "experts.gate_up_proj": (E, 2 * F, D), "experts.down_proj": (E, D, F)}


def count_expert_parameters(
    hidden_size: int, expert_size: int, num_experts: int, experts_per_token: int
) -> ExpertParameterCount:
    """Parameters of one mixture of experts, all of them and those that one token meets."""
    router, *matrices = map(math.prod, expert_parameter_shapes(hidden_size, expert_size, num_experts).values())
    expert = sum(matrices) // num_experts
    return ExpertParameterCount(
        total=router + num_experts * expert,
        active=router + experts_per_token * expert,
    )


def expert_flops_per_token(hidden_size: int, expert_size: int, num_experts: int, experts_per_token: int) -> float:
    """Floating-point operations of one training token in one mixture of experts: 6 times the active parameters.

    One multiplication and one addition per parameter forward, twice that backward (PaLM, appendix B,
    arXiv:2204.02311). Choosing and sorting are not counted; no expert computes padding.

    Returns:
        Operations of forward and backward together.
    """
    return 6.0 * count_expert_parameters(hidden_size, expert_size, num_experts, experts_per_token).active
