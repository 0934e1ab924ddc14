"""Interpolated Kneser-Ney against a dictionary version of the same formula."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from llm.errors import BaselineError
from llm.ngram import KneserNeyBigram

TOLERANCE = 1e-12
"""Double precision arithmetic of a handful of operations."""
MILLION_PAIRS_SECONDS = 5.0
"""About 0.15 s on one core; far above it, so that a busy machine passes and a Python loop does not."""
VOCABULARY = 12

IntArray = NDArray[np.int64]


def corpus(pairs: int = 60, vocab_size: int = VOCABULARY) -> tuple[IntArray, IntArray]:
    """Pairs over a vocabulary of which two words are never a target and two never a context."""
    random = np.random.default_rng(0)
    stream = np.minimum(random.zipf(1.5, pairs + 1) - 1, vocab_size - 3)
    return stream[:-1], stream[1:]


def discount(counts: Counter[int]) -> float:
    once, twice = list(counts.values()).count(1), list(counts.values()).count(2)
    return once / (once + 2 * twice) if once else 0.5


def slow_probability(v: int, w: int, contexts: IntArray, targets: IntArray) -> float:
    bigrams = Counter(zip(contexts.tolist(), targets.tolist(), strict=True))
    continuations = Counter(target for _, target in bigrams)
    d = discount(continuations)
    lower = max(continuations[w] - d, 0) / len(bigrams)
    lower += d * len(continuations) / len(bigrams) / VOCABULARY
    after = {bigram: count for bigram, count in bigrams.items() if bigram[0] == v}
    if not after:
        return lower
    d, total = discount(bigrams), sum(after.values())
    return max(bigrams[v, w] - d, 0) / total + d * len(after) / total * lower


def test_probabilities_equal_the_dictionary_version_when_all_pairs_are_scored() -> None:
    contexts, targets = corpus()
    model = KneserNeyBigram.fit(contexts, targets, VOCABULARY)
    v, w = np.divmod(np.arange(VOCABULARY**2), VOCABULARY)
    expected = [math.log(slow_probability(a, b, contexts, targets)) for a, b in zip(v, w, strict=True)]
    np.testing.assert_allclose(model.log_probabilities(v, w), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("context", [0, 1, 5, VOCABULARY - 1], ids=lambda v: f"context {v}")
def test_probabilities_sum_to_one_when_taken_over_the_vocabulary(context: int) -> None:
    model = KneserNeyBigram.fit(*corpus(), VOCABULARY)
    words = np.arange(VOCABULARY)
    total = np.exp(model.log_probabilities(np.full(VOCABULARY, context), words)).sum()
    assert total == pytest.approx(1.0, rel=TOLERANCE)


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_probabilities_sum_to_one_without_zeros_when_every_pair_has_the_same_count(repeats: int) -> None:
    contexts, targets = np.tile([0, 1, 2], repeats), np.tile([1, 2, 0], repeats)
    model = KneserNeyBigram.fit(contexts, targets, 5)
    for context in range(5):
        log_probabilities = model.log_probabilities(np.full(5, context), np.arange(5))
        assert np.isfinite(log_probabilities).all()
        assert np.exp(log_probabilities).sum() == pytest.approx(1.0, rel=TOLERANCE)


def test_perplexity_is_the_exponential_of_the_mean_when_scored() -> None:
    model = KneserNeyBigram.fit(*corpus(), VOCABULARY)
    contexts, targets = np.array([0, 1, 2]), np.array([1, 0, 11])
    mean = float(np.mean(model.log_probabilities(contexts, targets)))
    assert model.perplexity(contexts, targets) == pytest.approx(math.exp(-mean), rel=TOLERANCE)


def test_pairs_are_told_apart_when_the_vocabulary_is_large_and_tokens_are_narrow() -> None:
    contexts = np.array([65535, 65535, 0, 1], dtype=np.uint16)
    targets = np.array([65535, 65535, 1, 0], dtype=np.uint16)
    model = KneserNeyBigram.fit(contexts, targets, 65536)
    seen, unseen = model.log_probabilities(
        np.array([65535, 65535], dtype=np.uint16), np.array([65535, 7], dtype=np.uint16)
    )
    assert math.exp(seen) > 0.5
    assert math.exp(unseen) < 1e-4


def test_counting_and_scoring_are_quick_when_there_are_a_million_pairs() -> None:
    contexts, targets = corpus(1_000_000, 4096)
    start = time.perf_counter()
    KneserNeyBigram.fit(contexts, targets, 4096).perplexity(contexts, targets)
    assert time.perf_counter() - start < MILLION_PAIRS_SECONDS


@pytest.mark.parametrize(
    ("contexts", "targets", "message"),
    [
        (
            [],
            [],
            "the bigram baseline got no pairs to count: it needs one. Check the dataset's split.",
        ),
        (
            [1, 2],
            [1],
            "the bigram baseline got contexts of shape (2,) and targets of shape (1,): they must be flat and "
            "equal. Flatten both and leave out the same positions of each.",
        ),
        (
            [1, 5],
            [1, 1],
            "the bigram baseline got contexts from 1 to 5 with a vocabulary of 5: tokens lie from 0 to 4. "
            "Pass the tokenizer's vocabulary size.",
        ),
        (
            [1, 2],
            [-1, 1],
            "the bigram baseline got targets from -1 to 1 with a vocabulary of 5: tokens lie from 0 to 4. "
            "Pass the tokenizer's vocabulary size.",
        ),
    ],
)
def test_pairs_are_refused_when_they_cannot_be_counted(contexts: list[int], targets: list[int], message: str) -> None:
    with pytest.raises(BaselineError) as error:
        KneserNeyBigram.fit(np.array(contexts, dtype=np.int64), np.array(targets, dtype=np.int64), 5)
    assert str(error.value) == message


def test_perplexity_is_refused_when_nothing_is_scored() -> None:
    model = KneserNeyBigram.fit(*corpus(), VOCABULARY)
    nothing = np.array([], dtype=np.int64)
    with pytest.raises(BaselineError) as error:
        model.perplexity(nothing, nothing)
    assert str(error.value) == (
        "the bigram baseline got no pairs to score: a mean needs one. Check the dataset's split."
    )
