"""Cross entropy as two sums, so that the mean is taken once, over the whole global batch.

Legend: B batch, T sequence, N = B * T, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

_IGNORED = -100


class LossSums(NamedTuple):
    """Sums over the targets of one micro-batch, fp32 scalars. Loss = sum of loss_sum / sum of weight_sum."""

    loss_sum: Tensor
    """Weighted cross entropy, in nats. Carries the gradient."""
    weight_sum: Tensor
    """Sum of the loss weights: the number of targets where these are 0 and 1."""


def cross_entropy_sums(logits_BTV: Tensor, targets_BT: Tensor, loss_weights_BT: Tensor) -> LossSums:
    """Weighted sum of -log softmax(logits)[target], in fp32 whatever the dtype of the logits.

    Args:
        logits_BTV: Any floating dtype.
        targets_BT: int64 in [0, V); anything at all where the weight is 0.
        loss_weights_BT: Weight of each target; 0 leaves it out of both sums and out of the gradient.
    """
    weights_N = loss_weights_BT.flatten().float()
    targets_N = targets_BT.flatten().masked_fill(weights_N == 0, _IGNORED)
    losses_N = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_N, reduction="none", ignore_index=_IGNORED)
    return LossSums(loss_sum=(losses_N * weights_N).sum(), weight_sum=weights_N.sum())
