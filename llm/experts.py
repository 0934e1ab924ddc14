"""A feed-forward of many experts, of which each token uses a few (arXiv:1701.06538): router, experts, balance.

Parameters are named and shaped as in transformers' Qwen3-MoE and Mixtral. Every token reaches all the experts that it
chose, however many others chose them: no token is dropped, so none depends on the tokens beside it.
Legend: B batch, T sequence, N = B * T tokens, D model, E experts, C experts chosen per token, F hidden of one expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.expert_backends import experts_backend


class RouterSums(NamedTuple):
    """Sums over the tokens of one layer and one micro-batch, fp32.

    Those of micro-batches add up to those of the global batch, so the means are taken once, over its sum of weights.
    """

    balance_sum: Tensor
    """Sum over sequences of (sum of token weights) * (balance loss); see `router_sums`. Carries the gradient."""
    z_sum: Tensor
    """Sum over tokens of weight * logsumexp(router logits)^2, the router z-loss. Carries the gradient."""
    load_E: Tensor  # noqa: N815 - the suffix is its shape
    """Weighted number of tokens that chose each expert; adds up to C times the sum of weights. No gradient."""


class Router(nn.Module):
    """Logits of all experts for each token, in fp32 under any arithmetic: bf16 would tie and swap experts."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Shape: (B, T, D) -> (B, T, E)."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            return F.linear(x_BTD.float(), self.weight.float())


class Experts(nn.Module):
    """E SwiGLU feed-forwards (arXiv:2002.05202), each with its own gate, up and down matrices.

    A module of its own that uses its parameters in its own forward pass: sharded ones exist only there.
    """

    def __init__(self, hidden_size: int, expert_size: int, num_experts: int, activation: str, backend: str) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * expert_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, expert_size))
        self.activation = activation
        self.mix = experts_backend(backend)

    @torch.compiler.disable  # type: ignore[untyped-decorator] # how rows are grouped follows from the data, which no graph can hold
    def forward(self, x_ND: Tensor, experts_NC: Tensor, weights_NC: Tensor) -> Tensor:
        """Weighted sum of each token's experts; left out of compiled layers, whose other parts are compiled.

        Args:
            x_ND: In the dtype of the parameters, or any under autocast.
            experts_NC: int64; the different experts of each token.
            weights_NC: fp32.

        Returns:
            Shape: (N, D), in the dtype of x; under autocast in that of the arithmetic.
        """
        gate_up: Tensor = self.gate_up_proj
        down_EDF: Tensor = self.down_proj
        kind = x_ND.device.type
        if torch.is_autocast_enabled(kind):  # which does not know grouped_mm
            dtype = torch.get_autocast_dtype(kind)
            x_ND, gate_up, down_EDF = x_ND.to(dtype), gate_up.to(dtype), down_EDF.to(dtype)
        return self.mix(x_ND, experts_NC, weights_NC, gate_up, down_EDF, self.activation)


class MixtureOfExperts(nn.Module):
    """Router and experts in place of a dense feed-forward. Parameters are left uninitialised.

    `gate.weight` (E, D), `experts.gate_up_proj` (E, 2 F, D), `experts.down_proj` (E, D, F). How many they are and what
    a token costs: `llm.accounting`, total E D + 3 E D F, active E D + 3 C D F, 6 FLOP per active parameter.

    Args:
        hidden_size: D.
        expert_size: F.
        num_experts: E.
        experts_per_token: C, from 1 to E.
        normalize_weights: Divide a token's C probabilities by their sum: Mixtral's rule, and Qwen3-MoE's where
            norm_topk_prob is set.
        activation: Of the gate, by its name in `llm.fused`; silu in both.
        backend: Name of a way to compute the experts, already resolved (see `resolve_experts`).

    Raises:
        ExpertsBackendError: No backend has that name.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        expert_size: int,
        num_experts: int,
        experts_per_token: int,
        normalize_weights: bool,
        activation: str,
        backend: str,
    ) -> None:
        super().__init__()
        self.experts_per_token = experts_per_token
        self.normalize_weights = normalize_weights
        self.gate = Router(hidden_size, num_experts)
        self.experts = Experts(hidden_size, expert_size, num_experts, activation, backend)

    def forward(self, x_BTD: Tensor, token_weights_BT: Tensor | None = None) -> tuple[Tensor, RouterSums]:
        """Outputs, and what the router's losses and its report are made of.

        Args:
            x_BTD: One sequence a row.
            token_weights_BT: What each token counts in the sums: the loss weight of its target. 0 leaves it out, of the
                gradient too; its output is computed all the same. None means 1 for all.

        Returns:
            Shape (B, T, D) in the dtype of x, under autocast in that of the arithmetic; and the sums.
        """
        logits_BTE: Tensor = self.gate(x_BTD)
        probabilities_BTE = logits_BTE.softmax(dim=-1)
        experts_BTC = choose_experts(probabilities_BTE.detach(), self.experts_per_token)
        weights_BTC = probabilities_BTE.gather(-1, experts_BTC)
        if self.normalize_weights:
            weights_BTC = weights_BTC / weights_BTC.sum(dim=-1, keepdim=True)
        mixed_ND: Tensor = self.experts(x_BTD.flatten(0, 1), experts_BTC.flatten(0, 1), weights_BTC.flatten(0, 1))
        if token_weights_BT is None:
            token_weights_BT = torch.ones_like(logits_BTE[..., 0])
        return mixed_ND.view_as(x_BTD), router_sums(logits_BTE, probabilities_BTE, experts_BTC, token_weights_BT)


def choose_experts(probabilities_BTE: Tensor, experts_per_token: int) -> Tensor:
    """The most probable experts of each token, best first; of equals the one with the lower number.

    Not torch.topk, which says of equals only that it takes one of them.

    Returns:
        int64, shape (B, T, C); C different numbers for each token.
    """
    left_BTE = probabilities_BTE.clone()
    chosen = []
    for _ in range(experts_per_token):
        best_BT1 = left_BTE.argmax(dim=-1, keepdim=True)  # of equals the first, as documented
        chosen.append(best_BT1)
        left_BTE.scatter_(-1, best_BT1, -1.0)
    return torch.cat(chosen, dim=-1)


def router_sums(
    logits_BTE: Tensor, probabilities_BTE: Tensor, experts_BTC: Tensor, token_weights_BT: Tensor
) -> RouterSums:
    """Balance loss of each sequence, and z-loss of each token, weighted and added up.

    The balance loss is DeepSeek-V3's of a sequence (arXiv:2412.19437, eq. 17-20): sum over experts of f * P, with f the
    share of the sequence's tokens that chose the expert, times E / C, and P its mean probability; 1 where both are
    even. The usual one, over all tokens of a micro-batch (arXiv:2101.03961, eq. 4-6), would be another loss for every
    other micro-batch size. Here both means are weighted by the tokens' weights w, and the whole by their sum W, which
    makes W * sum(f * P) = E / C * sum(load * mass) / W. z-loss: arXiv:2202.08906, eq. 5.

    Args:
        logits_BTE: fp32.
        probabilities_BTE: Their softmax.
        experts_BTC: int64; the experts of each token.
        token_weights_BT: At least 0.
    """
    E, C = probabilities_BTE.shape[-1], experts_BTC.shape[-1]
    weights_BT = token_weights_BT.float()
    weights_BT1 = weights_BT[..., None]
    # Sums of products, not matrix products: those are not fp32 under autocast or TF32.
    chosen_BTE = torch.zeros_like(probabilities_BTE).scatter_(-1, experts_BTC, 1.0)
    load_BE = (chosen_BTE * weights_BT1).sum(dim=1)
    mass_BE = (probabilities_BTE * weights_BT1).sum(dim=1)
    weight_B = weights_BT.sum(dim=1)
    weight_B = weight_B.masked_fill(weight_B == 0, 1.0)  # a row of padding is 0 / 1, gradients too
    balance_B = (load_BE * mass_BE).sum(dim=-1) / weight_B * (E / C)
    # Masked before it is squared: 0 times an overflow would be nan.
    z_BT = logits_BTE.logsumexp(dim=-1).masked_fill(weights_BT == 0, 0.0).square()
    return RouterSums(balance_sum=balance_B.sum(), z_sum=(z_BT * weights_BT).sum(), load_E=load_BE.sum(dim=0).detach())
