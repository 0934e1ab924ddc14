"""Heads of tasks other than the next token: a linear layer on the trunk's hidden states, and its loss.

A head reads the position that its target stands at: the last of a text that is judged as a whole, the last token of a
word that is tagged. All of them take the same arguments, so that what trains a language model trains every task. A new
one is a class here, entered in `HEADS`. Routers of experts are not evened out under them: one token of a text, whose
target counts, is nothing to balance.

Legend: B batch, T sequence, D model, C outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.head_config import HeadConfig, Predicts
from llm.loss import LossSums


class TaskHead(nn.Module, ABC):
    """Outputs of every position, and the loss of those that have a target.

    Args:
        config: What is predicted.
        hidden_size: D.
        label_smoothing: Share of a target's probability that is spread evenly over all classes, in what is minimised
            alone (arXiv:1512.00567); heads without classes take 0.
    """

    def __init__(self, config: HeadConfig, hidden_size: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weight = nn.Parameter(torch.empty(config.outputs, hidden_size))
        self.bias = nn.Parameter(torch.empty(config.outputs)) if config.bias else None

    def forward(
        self, hidden_BTD: Tensor, targets: Tensor | None = None, loss_weights_BT: Tensor | None = None
    ) -> Tensor | LossSums:
        """Outputs where there are no targets, else the loss.

        Args:
            hidden_BTD: Any floating dtype.
            targets: What the head's `losses` takes; anything at all where the weight is 0.
            loss_weights_BT: Weight of each target; None means 1 for all.

        Returns:
            fp32 of shape (B, T, C), or the sums over all targets.
        """
        outputs_BTC = F.linear(hidden_BTD, self.weight, self.bias).float()
        if targets is None:
            return outputs_BTC
        if loss_weights_BT is None:
            loss_weights_BT = torch.ones(outputs_BTC.shape[:2], device=outputs_BTC.device)
        return self.sums(outputs_BTC, targets, loss_weights_BT, self.label_smoothing)

    @classmethod
    def sums(
        cls, outputs_BTC: Tensor, targets: Tensor, loss_weights_BT: Tensor, label_smoothing: float = 0.0
    ) -> LossSums:
        """The loss of outputs, as `forward` gives it."""
        weights_BT = loss_weights_BT.float()
        counts_BT = weights_BT != 0
        loss_sum = _weighted(cls.losses(outputs_BTC, targets, counts_BT), weights_BT, counts_BT)
        objective_sum = loss_sum
        if label_smoothing:
            smooth_BT = -F.log_softmax(outputs_BTC, dim=-1).mean(dim=-1)
            spread_sum = _weighted(smooth_BT, weights_BT, counts_BT)
            objective_sum = (1 - label_smoothing) * loss_sum + label_smoothing * spread_sum
        return LossSums(objective_sum, loss_sum.detach(), weights_BT.sum(), {})

    @staticmethod
    @abstractmethod
    def losses(outputs_BTC: Tensor, targets: Tensor, counts_BT: Tensor) -> Tensor:
        """Loss of each position, whatever it is where the target does not count. Shape: (B, T)."""

    @staticmethod
    @abstractmethod
    def predictions(outputs: Tensor) -> Tensor:
        """What outputs mean: probabilities, or the number itself. Shape: (..., C)."""


class ClassHead(TaskHead):
    """One of C classes: cross entropy. Targets: int64 in [0, C) of shape (B, T)."""

    @staticmethod
    def losses(outputs_BTC: Tensor, targets: Tensor, counts_BT: Tensor) -> Tensor:
        """-log softmax(outputs)[target]."""
        targets_BT = torch.where(counts_BT, targets, 0)
        return F.cross_entropy(outputs_BTC.transpose(1, 2), targets_BT, reduction="none")

    @staticmethod
    def predictions(outputs: Tensor) -> Tensor:
        """Probabilities that add up to 1."""
        return outputs.softmax(dim=-1)


class LabelsHead(TaskHead):
    """Any number of C labels: the sum of their binary cross entropies. Targets: 0 or 1, of shape (B, T, C)."""

    @staticmethod
    def losses(outputs_BTC: Tensor, targets: Tensor, counts_BT: Tensor) -> Tensor:
        """Sum over labels of -log sigmoid(±output)."""
        targets_BTC = torch.where(counts_BT[..., None], targets.float(), 0.0)
        return F.binary_cross_entropy_with_logits(outputs_BTC, targets_BTC, reduction="none").sum(dim=-1)

    @staticmethod
    def predictions(outputs: Tensor) -> Tensor:
        """Probabilities, each on its own."""
        return outputs.sigmoid()


class NumberHead(TaskHead):
    """A real number: squared error. Targets: fp32 of shape (B, T)."""

    @staticmethod
    def losses(outputs_BTC: Tensor, targets: Tensor, counts_BT: Tensor) -> Tensor:
        """(output - target)^2."""
        return (outputs_BTC[..., 0] - torch.where(counts_BT, targets.float(), 0.0)) ** 2

    @staticmethod
    def predictions(outputs: Tensor) -> Tensor:
        """The number itself."""
        return outputs


HEADS: dict[Predicts, type[TaskHead]] = {"class": ClassHead, "labels": LabelsHead, "number": NumberHead}
"""The head of each kind of prediction."""


def task_head(config: HeadConfig, hidden_size: int, label_smoothing: float = 0.0) -> TaskHead:
    """The head that a configuration describes, its parameters uninitialised. See `TaskHead`."""
    return HEADS[config.predicts](config, hidden_size, label_smoothing)


def _weighted(losses_BT: Tensor, weights_BT: Tensor, counts_BT: Tensor) -> Tensor:
    """Weighted sum of the losses that count, the others left out of the gradient even where they are not finite."""
    return (torch.where(counts_BT, losses_BT, 0.0) * weights_BT).sum()
