"""The baseline that a trained model has to beat: a bigram model with interpolated Kneser-Ney smoothing.

Counts and probabilities are as in Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for
Language Modeling", TR-10-98, section 2.7. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm.errors import BaselineError

IntArray = NDArray[np.integer]
FloatArray = NDArray[np.float64]

_FALLBACK_DISCOUNT = 0.5
"""Where nothing was seen exactly once D cannot be estimated, and unseen words still need some mass."""


@dataclass(frozen=True, eq=False)
class KneserNeyBigram:
    """P(w | v) = max(c(vw) - D, 0) / c(v) + D N(v) / c(v) * P1(w), with N(v) the distinct words seen after v.

    P1 counts in how many contexts w was seen, discounts that in the same way, and interpolates with 1 / V. A
    context that was never seen gives P1 itself.
    """

    vocab_size: int
    _pairs: NDArray[np.int64]
    """Sorted keys v * V + w of the pairs seen."""
    _discounted: FloatArray
    """max(c(vw) - D, 0) / c(v) for each of these pairs."""
    _backoff: FloatArray
    """Weight of the lower order for each context; 1 where it was never seen. Shape: (V,)."""
    _lower: FloatArray
    """P1 of each word. Shape: (V,)."""

    @classmethod
    def fit(cls, contexts: IntArray, targets: IntArray, vocab_size: int) -> KneserNeyBigram:
        """Count pairs.

        Args:
            contexts: Token before each target. Shape: (N,).
            targets: Token to predict. Shape: (N,). Leave out pairs that cross a document boundary.
            vocab_size: V; every token is in [0, V).

        Raises:
            BaselineError: No pairs, unequal lengths, or a token outside the vocabulary.
        """
        keys = _pair_keys(contexts, targets, vocab_size)
        if not keys.size:
            raise BaselineError("the bigram baseline got no pairs to count: it needs one. Check the dataset's split.")
        pairs, counts = np.unique(keys, return_counts=True)
        pair_contexts, pair_targets = np.divmod(pairs, vocab_size)

        continuations = np.bincount(pair_targets, minlength=vocab_size)
        discount = _discount(continuations[continuations > 0])
        seen_words = np.count_nonzero(continuations)
        lower = np.maximum(continuations - discount, 0.0) / pairs.size
        lower += discount * seen_words / pairs.size / vocab_size

        discount = _discount(counts)
        context_counts = np.bincount(pair_contexts, weights=counts, minlength=vocab_size)
        distinct_after = np.bincount(pair_contexts, minlength=vocab_size)
        backoff = np.ones(vocab_size)
        np.divide(discount * distinct_after, context_counts, out=backoff, where=context_counts > 0)
        discounted = np.maximum(counts - discount, 0.0) / context_counts[pair_contexts]
        return cls(vocab_size, pairs, discounted, backoff, lower)

    def log_probabilities(self, contexts: IntArray, targets: IntArray) -> FloatArray:
        """Natural logarithm of P(target | context) for each pair. Shape: (N,), finite.

        Raises:
            BaselineError: Unequal lengths, or a token outside the vocabulary.
        """
        keys = _pair_keys(contexts, targets, self.vocab_size)
        slots = np.minimum(np.searchsorted(self._pairs, keys), self._pairs.size - 1)
        higher = np.where(self._pairs[slots] == keys, self._discounted[slots], 0.0)
        probabilities: FloatArray = higher + self._backoff[contexts] * self._lower[targets]
        return np.log(probabilities)

    def perplexity(self, contexts: IntArray, targets: IntArray) -> float:
        """exp of the mean negative log probability, in choices per token.

        Raises:
            BaselineError: No pairs, unequal lengths, or a token outside the vocabulary.
        """
        if not np.size(targets):
            raise BaselineError(
                "the bigram baseline got no pairs to score: a mean needs one. Check the dataset's split."
            )
        return float(np.exp(-self.log_probabilities(contexts, targets).mean()))


def _pair_keys(contexts: IntArray, targets: IntArray, vocab_size: int) -> NDArray[np.int64]:
    if contexts.ndim != 1 or contexts.shape != targets.shape:
        raise BaselineError(
            f"the bigram baseline got contexts of shape {contexts.shape} and targets of shape "
            f"{targets.shape}: they must be flat and equal. "
            "Flatten both and leave out the same positions of each."
        )
    for name, tokens in (("contexts", contexts), ("targets", targets)):
        if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
            raise BaselineError(
                f"the bigram baseline got {name} from {tokens.min()} to {tokens.max()} with a vocabulary of "
                f"{vocab_size}: tokens lie from 0 to {vocab_size - 1}. Pass the tokenizer's vocabulary size."
            )
    return contexts.astype(np.int64) * vocab_size + targets.astype(np.int64)


def _discount(counts: NDArray[np.int64]) -> float:
    """D = n1 / (n1 + 2 n2), the fraction of a count given to unseen words (Ney, Essen and Kneser 1994)."""
    once, twice = int(np.count_nonzero(counts == 1)), int(np.count_nonzero(counts == 2))
    return once / (once + 2 * twice) if once else _FALLBACK_DISCOUNT
