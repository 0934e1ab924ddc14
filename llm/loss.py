"""Cross entropy as two sums, so that the mean is taken once, over the whole global batch.

Legend: B batch, T sequence, N = B * T, C rows of a chunk, D model, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_IGNORED = -100
CHUNK_BYTES = 64 << 20
"""fp32 logits that are held at a time: enough rows to keep a matrix product busy, and small beside the gradient of the
output weight, which is V x D."""


class LossSums(NamedTuple):
    """Sums over the targets of one micro-batch, fp32 scalars. Loss = sum of loss_sum / sum of weight_sum."""

    loss_sum: Tensor
    """Weighted cross entropy, in nats. Carries the gradient."""
    weight_sum: Tensor
    """Sum of the loss weights: the number of targets where these are 0 and 1."""


def cross_entropy_sums(logits_BTV: Tensor, targets_BT: Tensor, loss_weights_BT: Tensor) -> LossSums:
    """Weighted sum of -log softmax(logits)[target], in fp32 whatever the dtype of the logits.

    The obvious twin of `linear_cross_entropy_sums`.

    Args:
        logits_BTV: Any floating dtype.
        targets_BT: int64 in [0, V); anything at all where the weight is 0.
        loss_weights_BT: Weight of each target; 0 leaves it out of both sums and out of the gradient.
    """
    weights_N = loss_weights_BT.flatten().float()
    targets_N = targets_BT.flatten().masked_fill(weights_N == 0, _IGNORED)
    losses_N = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_N, reduction="none", ignore_index=_IGNORED)
    return LossSums(loss_sum=(losses_N * weights_N).sum(), weight_sum=weights_N.sum())


def linear_cross_entropy_sums(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    loss_weights_BT: Tensor,
    chunk_bytes: int = CHUNK_BYTES,
) -> LossSums:
    """`cross_entropy_sums` of `hidden @ weight.T`, without ever holding the logits of all positions.

    Rows are taken in chunks; each chunk's gradients are made beside its loss, while its logits are there (as in Liger
    Kernel, arXiv:2410.10989, section 3.2), so that nothing is computed twice. Memory: the forward pass holds the two
    gradients, that of the weight in fp32, and about two chunks; the backward pass a second copy of the gradients.

    Args:
        hidden_BTD: Any floating dtype, in which the products are computed.
        weight_VD: Output projection, of the same dtype.
        targets_BT: int64 in [0, V); anything at all where the weight is 0.
        loss_weights_BT: Weight of each target; 0 leaves it out of both sums and out of the gradient.
        chunk_bytes: fp32 logits of one chunk; at least one row is taken.
    """
    weights_N = loss_weights_BT.flatten().float()
    targets_N = targets_BT.flatten().masked_fill(weights_N == 0, 0)
    rows = max(1, chunk_bytes // (4 * weight_VD.shape[0]))
    if not torch.is_grad_enabled():  # the function itself cannot tell: parameters ask for gradients there too
        hidden_BTD, weight_VD = hidden_BTD.detach(), weight_VD.detach()
    hidden_ND = hidden_BTD.flatten(0, 1)
    loss_sum = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, weights_N, rows)  # type: ignore[no-untyped-call]
    return LossSums(loss_sum=loss_sum, weight_sum=weights_N.sum())


class _LinearCrossEntropy(torch.autograd.Function):
    """Weighted sum of -log softmax(hidden @ weight.T)[target]; d/d logits = weight of the row * (softmax - one-hot)."""

    @staticmethod
    def forward(
        context: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor, rows: int
    ) -> Tensor:
        """Loss, and where anything asks for gradients these too."""
        wants_hidden, wants_weight = context.needs_input_grad[:2]
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        for start in range(0, len(hidden_ND), rows):
            part = slice(start, start + rows)
            hidden_CD, weights_C1 = hidden_ND[part], weights_N[part, None]
            targets_C1 = targets_N[part, None]
            logits_CV = F.linear(hidden_CD, weight_VD).float()
            target_logits_C1 = logits_CV.gather(1, targets_C1)
            logsumexp_C1 = logits_CV.logsumexp(dim=1, keepdim=True)
            losses_C1 = torch.where(weights_C1 == 0, 0.0, logsumexp_C1 - target_logits_C1)
            loss_sum += (losses_C1 * weights_C1).sum()
            if grad_hidden_ND is None and grad_weight_VD is None:
                continue
            grad_logits_CV = logits_CV.sub_(logsumexp_C1).exp_()
            grad_logits_CV.scatter_add_(1, targets_C1, torch.full_like(target_logits_C1, -1.0))
            grad_logits_CV = grad_logits_CV.mul_(weights_C1).masked_fill_(weights_C1 == 0, 0.0).to(hidden_ND.dtype)
            if grad_hidden_ND is not None:
                torch.mm(grad_logits_CV, weight_VD, out=grad_hidden_ND[part])
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_logits_CV, hidden_CD)
        context.save_for_backward(grad_hidden_ND, grad_weight_VD)
        context.weight_dtype = weight_VD.dtype
        return loss_sum

    @staticmethod
    def backward(context: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """The gradients made in `forward`, times that of the loss."""
        (grad_loss,) = grads
        grad_hidden_ND, grad_weight_VD = context.saved_tensors
        if grad_hidden_ND is not None:
            scale_11 = grad_loss.expand(1, 1)  # a scalar tensor would first be rounded to the gradient's dtype
            grad_hidden_ND = (grad_hidden_ND * scale_11).to(grad_hidden_ND.dtype)
        if grad_weight_VD is not None:
            grad_weight_VD = (grad_weight_VD * grad_loss).to(context.weight_dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None


def _add_product(total_VD: Tensor, grad_logits_CV: Tensor, hidden_CD: Tensor) -> None:
    """Add `grad_logits.T @ hidden` to an fp32 sum."""
    if hidden_CD.dtype == torch.float32:
        total_VD.addmm_(grad_logits_CV.t(), hidden_CD)
    else:
        total_VD += grad_logits_CV.t() @ hidden_CD
