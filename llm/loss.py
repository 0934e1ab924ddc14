"""Cross entropy as two sums, so that the mean is taken once, over the whole global batch.

Legend: B batch, T sequence, N = B * T, C rows of a chunk, D model, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.memory import loss_chunk_rows

_IGNORED = -100


class LossSums(NamedTuple):
    """Sums over the targets of one micro-batch, fp32 scalars. Loss = sum of loss_sum / sum of weight_sum."""

    objective_sum: Tensor
    """What is minimised: the weighted cross entropy and every penalty. Carries the gradient."""
    loss_sum: Tensor
    """Weighted cross entropy alone, in nats."""
    weight_sum: Tensor
    """Sum of the loss weights: the number of targets where these are 0 and 1."""
    terms: dict[str, Tensor]
    """Other sums that belong to the targets, by name, each of one shape for the whole run."""


class LossRule(NamedTuple):
    """How products of hidden states and output weight become logits, and logits a loss."""

    scale: float = 1.0
    """Logits are scale * product."""
    softcap: float | None = None
    """Then softcap * tanh(logits / softcap) (arXiv:2408.00118)."""
    z_loss: float = 0.0
    """Coefficient of logsumexp(logits)^2, which keeps the partition function near 1 (PaLM, arXiv:2204.02311)."""

    def logits(self, products: Tensor) -> Tensor:
        """Logits, in the dtype of the products."""
        logits = products if self.scale == 1.0 else products * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """d logits / d (scale * product), in fp32; None where it is 1 everywhere."""
        return None if self.softcap is None else 1 - (logits.float() / self.softcap) ** 2


PLAIN = LossRule()
Z_LOSS = "z_loss"
"""z_loss * logsumexp(logits)^2, a part of the objective."""
ROUTER_BALANCE = "router_balance"
"""Balance loss of the routers, the mean over layers: 1 where experts are used evenly. Not yet weighted."""
ROUTER_Z = "router_z"
"""Squared log partition function of the routers, the mean over layers. Not yet weighted."""
EXPERT_LOAD = "expert_load"
"""How many tokens each expert of each layer was chosen by. Shape: (layers, experts)."""


def cross_entropy_sums(
    logits_BTV: Tensor, targets_BT: Tensor, loss_weights_BT: Tensor, z_loss: float = 0.0
) -> LossSums:
    """Weighted sum of -log softmax(logits)[target], in fp32 whatever the dtype of the logits.

    The obvious twin of `linear_cross_entropy_sums`.

    Args:
        logits_BTV: Any floating dtype.
        targets_BT: int64 in [0, V); anything at all where the weight is 0.
        loss_weights_BT: Weight of each target; 0 leaves it out of all sums and out of the gradient.
        z_loss: Coefficient of the squared log partition function.
    """
    weights_N = loss_weights_BT.flatten().float()
    logits_NV = logits_BTV.flatten(0, 1).float()
    targets_N = targets_BT.flatten().masked_fill(weights_N == 0, _IGNORED)
    losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none", ignore_index=_IGNORED)
    loss_sum, weight_sum = (losses_N * weights_N).sum(), weights_N.sum()
    if not z_loss:
        return LossSums(loss_sum, loss_sum.detach(), weight_sum, {})
    squares_N = torch.where(weights_N == 0, 0.0, logits_NV.logsumexp(dim=-1) ** 2)
    z_sum = z_loss * (squares_N * weights_N).sum()
    return LossSums(loss_sum + z_sum, loss_sum.detach(), weight_sum, {Z_LOSS: z_sum.detach()})


def linear_cross_entropy_sums(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    loss_weights_BT: Tensor,
    rule: LossRule = PLAIN,
    chunk_rows: int | None = None,
) -> LossSums:
    """`cross_entropy_sums` of `rule.logits(hidden @ weight.T)`, without ever holding the logits of all positions.

    Rows are taken in chunks; each chunk's gradients are made beside its loss, while its logits are there (as in Liger
    Kernel, arXiv:2410.10989, section 3.2), so that nothing is computed twice. Memory: the forward pass holds the two
    gradients, that of the weight in fp32, and about two chunks; the backward pass a second copy of the gradients.

    Args:
        hidden_BTD: Any floating dtype, in which the products are computed.
        weight_VD: Output projection, of the same dtype.
        targets_BT: int64 in [0, V); anything at all where the weight is 0.
        loss_weights_BT: Weight of each target; 0 leaves it out of all sums and out of the gradient.
        rule: What becomes of the products.
        chunk_rows: Positions of one chunk; None for `llm.memory.loss_chunk_rows`.
    """
    weights_N = loss_weights_BT.flatten().float()
    targets_N = targets_BT.flatten().masked_fill(weights_N == 0, 0)
    rows = chunk_rows or loss_chunk_rows(*weight_VD.shape)
    if not torch.is_grad_enabled():  # the function itself cannot tell: parameters ask for gradients there too
        hidden_BTD, weight_VD = hidden_BTD.detach(), weight_VD.detach()
    hidden_ND = hidden_BTD.flatten(0, 1)
    objective_sum, loss_sum, z_sum = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, targets_N, weights_N, rule, rows
    )
    return LossSums(objective_sum, loss_sum, weights_N.sum(), {Z_LOSS: z_sum} if rule.z_loss else {})


class _LinearCrossEntropy(torch.autograd.Function):
    """Weighted sums of -log softmax(logits)[target] and of z_loss * logsumexp(logits)^2, and the sum of both.

    With L the logsumexp, d/d logits = weight of the row * ((1 + 2 z_loss L) softmax - one-hot).
    """

    @staticmethod
    def forward(
        context: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        rule: LossRule,
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Objective, loss and z-loss, and where anything asks for gradients these too."""
        wants_hidden, wants_weight = context.needs_input_grad[:2]
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        z_sum = torch.zeros_like(loss_sum)
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        for start in range(0, len(hidden_ND), rows):
            part = slice(start, start + rows)
            hidden_CD, targets_C1, weights_C1 = hidden_ND[part], targets_N[part, None], weights_N[part, None]
            logits_CV = F.linear(hidden_CD, weight_VD)
            if rule.softcap is not None or rule.scale != 1.0:
                logits_CV = rule.logits(logits_CV.float())
            slope_CV = rule.slope(logits_CV)
            target_logits_C1 = logits_CV.gather(1, targets_C1).float()
            logits_CV = logits_CV.log_softmax(dim=1, dtype=torch.float32)
            losses_C1 = -logits_CV.gather(1, targets_C1)
            logsumexp_C1 = target_logits_C1 + losses_C1
            loss_sum += (torch.where(weights_C1 == 0, 0.0, losses_C1) * weights_C1).sum()
            if rule.z_loss:
                squares_C1 = torch.where(weights_C1 == 0, 0.0, logsumexp_C1**2)
                z_sum += rule.z_loss * (squares_C1 * weights_C1).sum()
            if grad_hidden_ND is None and grad_weight_VD is None:
                continue
            grad_CV = _gradient_of_logits(logits_CV, logsumexp_C1, targets_C1, weights_C1, rule)
            if slope_CV is not None:
                grad_CV = grad_CV.mul_(slope_CV)
            grad_CV = grad_CV.to(hidden_ND.dtype)
            # weights of rows and the scale of logits go to the narrow factors of the products, in fp32: rounded first,
            # they would stretch all gradients alike
            row_scale_C1 = weights_C1 * rule.scale
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_ND[part]).mul_(row_scale_C1)
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_CV, (hidden_CD * row_scale_C1).to(hidden_ND.dtype))
            del logits_CV, grad_CV, slope_CV  # else they live while the next chunk's are made
        context.save_for_backward(grad_hidden_ND, grad_weight_VD)
        context.weight_dtype = weight_VD.dtype
        context.mark_non_differentiable(loss_sum, z_sum)
        return loss_sum + z_sum, loss_sum, z_sum

    @staticmethod
    def backward(context: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        """The gradients made in `forward`, times that of the objective."""
        grad_objective = grads[0]
        grad_hidden_ND, grad_weight_VD = context.saved_tensors
        if grad_hidden_ND is not None:
            scale_11 = grad_objective.expand(1, 1)  # a scalar would first be rounded to the gradient's dtype
            grad_hidden_ND = (grad_hidden_ND * scale_11).to(grad_hidden_ND.dtype)
        if grad_weight_VD is not None:
            grad_weight_VD = (grad_weight_VD * grad_objective).to(context.weight_dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None, None


def _gradient_of_logits(
    log_softmax_CV: Tensor, logsumexp_C1: Tensor, targets_C1: Tensor, weights_C1: Tensor, rule: LossRule
) -> Tensor:
    """Gradient of a chunk's objective, before rows are weighted, made in the memory of the logarithms."""
    softmax_CV = log_softmax_CV.exp_()
    if rule.z_loss:
        softmax_CV.mul_(1 + 2 * rule.z_loss * logsumexp_C1)
    softmax_CV.scatter_add_(1, targets_C1, torch.full_like(logsumexp_C1, -1.0))
    left_out_C = weights_C1[:, 0] == 0
    if left_out_C.device.type != "cpu" or bool(left_out_C.any()):  # asking would wait for a GPU
        softmax_CV.masked_fill_(left_out_C[:, None], 0.0)  # 0 times what is not finite would be nan
    return softmax_CV


def _add_product(total_VD: Tensor, grad_logits_CV: Tensor, hidden_CD: Tensor) -> None:
    """Add `grad_logits.T @ hidden` to an fp32 sum."""
    if hidden_CD.dtype == torch.float32:
        total_VD.addmm_(grad_logits_CV.t(), hidden_CD)
    else:
        total_VD += grad_logits_CV.t() @ hidden_CD
