"""Figures of a language model: how well it predicts text, and how often it prefers the right one.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval: so many of the intervals made in this way hold the true share."""
_TOP_FEW = 5


@dataclass(frozen=True, kw_only=True)
class TokenSums:
    """Sums over the tokens that were predicted; those of the parts of a text add up to those of the whole."""

    targets: int
    """Tokens predicted."""
    loss_nats: float
    """Sum of -ln P(token | those before it)."""
    utf8_bytes: int
    """Of the text that the tokens spell."""
    first: int
    """Tokens that the model found likeliest of all."""
    among_five: int
    """Tokens that it found among the five likeliest."""

    def __add__(self, other: TokenSums) -> TokenSums:
        return TokenSums(
            targets=self.targets + other.targets,
            loss_nats=self.loss_nats + other.loss_nats,
            utf8_bytes=self.utf8_bytes + other.utf8_bytes,
            first=self.first + other.first,
            among_five=self.among_five + other.among_five,
        )

    def figures(self) -> dict[str, Any]:
        """What is reported; null where there is nothing to divide by.

        Returns:
            tokens: Tokens predicted.
            loss: Nats per token, loss sum / tokens.
            perplexity: exp(loss); infinite where that overflows.
            bytes: UTF-8 bytes of the text.
            bits_per_byte: Loss sum / ln 2 / bytes. Unlike the others it compares models of different tokenizers.
            top1_accuracy, top5_accuracy: Share of the tokens that were the model's first guess, or among its five.
        """
        loss = _ratio(self.loss_nats, self.targets)
        return {
            "tokens": self.targets,
            "loss": loss,
            "perplexity": None if loss is None else _exp(loss),
            "bytes": self.utf8_bytes,
            "bits_per_byte": _ratio(self.loss_nats / math.log(2), self.utf8_bytes),
            "top1_accuracy": _ratio(self.first, self.targets),
            "top5_accuracy": _ratio(self.among_five, self.targets),
        }


NOTHING = TokenSums(targets=0, loss_nats=0.0, utf8_bytes=0, first=0, among_five=0)


def token_sums(
    losses: NDArray[np.floating], ranks: NDArray[np.integer], groups: NDArray[np.integer], count: int
) -> list[TokenSums]:
    """Sums over the tokens of each group, added in double precision; bytes, which tokens do not tell, are 0.

    Args:
        losses: -ln P of each token. Shape: (N,).
        ranks: How many tokens the model found likelier than each. Shape: (N,).
        groups: Which group each token is of, from 0. Shape: (N,).
        count: Groups.
    """
    targets = np.bincount(groups, minlength=count)
    nats = np.bincount(groups, weights=losses, minlength=count)
    first = np.bincount(groups[ranks == 0], minlength=count)
    among_five = np.bincount(groups[ranks < _TOP_FEW], minlength=count)
    return [
        TokenSums(
            targets=int(targets[group]),
            loss_nats=float(nats[group]),
            utf8_bytes=0,
            first=int(first[group]),
            among_five=int(among_five[group]),
        )
        for group in range(count)
    ]


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of the questions asked were answered right."""

    right: int
    asked: int

    def __add__(self, other: Share) -> Share:
        return Share(right=self.right + other.right, asked=self.asked + other.asked)

    @property
    def value(self) -> float | None:
        """right / asked."""
        return _ratio(self.right, self.asked)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's score interval of `CONFIDENCE`."""
        return wilson_interval(self.right, self.asked) if self.asked else None


def wilson_interval(right: int, asked: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the shares from which `right` of `asked` is not surprising; unlike p +- z s it stays within [0, 1].

    With p = right / asked, n = asked and z the normal quantile: (p + z^2/2n +- z sqrt(p (1-p)/n + z^2/4n^2)) /
    (1 + z^2/n) (Wilson 1927, "Probable Inference", J. Am. Stat. Assoc. 22).
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = right / asked, z * z / asked
    middle, half = share + weight / 2, z * math.sqrt(share * (1 - share) / asked + weight / (4 * asked))
    return max(0.0, (middle - half) / (1 + weight)), min(1.0, (middle + half) / (1 + weight))


def likeliest(log_probabilities: Sequence[float], lengths: Sequence[int] | None = None) -> int:
    """The choice of the greatest log-probability, the first among equals.

    Args:
        log_probabilities: Sum over the tokens of each choice.
        lengths: Divides each. With the choices' UTF-8 bytes this is lm-eval's `acc_bytes`, and its `acc_norm` too where
            every character is one byte; None compares the sums, its `acc`.
    """
    scores = np.asarray(log_probabilities, dtype=np.float64)
    return int(np.argmax(scores if lengths is None else scores / np.asarray(lengths, dtype=np.float64)))


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
