"""Exact match and token F1 of extracted answers, as in SQuAD's official script (arXiv:1606.05250, arXiv:1806.03822).

Answers are compared in lower case, without punctuation, articles and extra blanks. Of several true answers the best
counts; an example without an answer has the empty one, which only an empty prediction matches.

Legend: N examples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm.errors import MetricsError
from llm.metrics.inputs import FloatArray, IntArray, same_length
from llm.metrics.intervals import Statistic

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class SpanScores:
    """From 0 to 1 for each example."""

    exact: FloatArray
    """Whether the answers match. Shape: (N,)."""
    f1: FloatArray
    """Of their words. Shape: (N,)."""

    def statistic(self) -> Statistic:
        """`exact_match` and `f1` of draws."""

        def figures(counts_NR: IntArray) -> dict[str, FloatArray]:
            drawn_R = counts_NR.sum(axis=0)
            return {
                "exact_match": (self.exact @ counts_NR) / drawn_R,
                "f1": (self.f1 @ counts_NR) / drawn_R,
            }

        return figures


def span_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> SpanScores:
    """Score predicted answers.

    Args:
        predictions: One for each example; empty for `there is no answer`.
        answers: The true ones of each example; none where the text has no answer.

    Raises:
        MetricsError: no examples, or not as many of both.
    """
    same_length(predictions, answers, "predictions and answers")
    if not len(predictions):
        raise MetricsError("measures got no predictions: a mean needs one example. Check the dataset's split.")
    # As in the script: answers of which nothing is left ("the") do not count, and where none is left there is none.
    true = [[answer for answer in each if normalized(answer)] or [""] for each in answers]
    pairs = list(zip(predictions, true, strict=True))
    return SpanScores(
        exact=np.array([max(exact_match(said, each) for each in options) for said, options in pairs]),
        f1=np.array([max(token_f1(said, each) for each in options) for said, options in pairs]),
    )


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, answer: str) -> float:
    """1 where both are the same when normalised, else 0."""
    return float(normalized(predicted) == normalized(answer))


def token_f1(predicted: str, answer: str) -> float:
    """F1 of the words, as bags; where either has none, 1 if both have none, else 0."""
    said, true = normalized(predicted).split(), normalized(answer).split()
    if not said or not true:
        return float(said == true)
    shared = (Counter(said) & Counter(true)).total()
    return 2 * shared / (len(said) + len(true))
