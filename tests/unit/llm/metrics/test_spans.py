"""Extracted answers as SQuAD's script scores them."""

from __future__ import annotations

import numpy as np
import pytest

from llm.errors import MetricsError
from llm.metrics.intervals import percentile_intervals
from llm.metrics.spans import normalized, span_scores, token_f1


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat's\tHat!", "cats hat"),
        ("an apple, a day", "apple day"),
        ("theatre", "theatre"),
        ("a-the", "athe"),  # punctuation goes before articles
        ("U.S.A.", "usa"),
        ("The", ""),
    ],
)
def test_text_is_normalised_as_by_the_script(text: str, plain: str) -> None:
    assert normalized(text) == plain


@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        ("the Denver Broncos", ["Denver Broncos", "Broncos"], 1.0, 1.0),
        ("Denver Broncos team", ["Denver Broncos", "Broncos"], 0.0, 0.8),
        ("Carolina", ["Denver"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("Denver", [], 0.0, 0.0),
        ("", ["Denver"], 0.0, 0.0),
        ("the", ["the"], 1.0, 1.0),
        ("", ["the", "Denver"], 0.0, 0.0),  # of an answer that is an article nothing is left to find
    ],
)
def test_best_answer_counts(predicted: str, answers: list[str], exact: float, f1: float) -> None:
    scores = span_scores([predicted], [answers])
    assert (scores.exact.tolist(), scores.f1.tolist()) == ([exact], [pytest.approx(f1)])


def test_token_f1_counts_repeated_words_as_often_as_both_have_them() -> None:
    assert token_f1("york york york", "new york york") == pytest.approx(2 * 2 / 6)


def test_scores_have_intervals_around_their_means() -> None:
    scores = span_scores(["yes", "no"] * 50, [["yes"]] * 100)
    (low, high) = percentile_intervals(scores.statistic(), 100)["exact_match"]
    assert low < 0.5 < high
    assert scores.statistic()(np.ones((100, 1), dtype=np.int64))["f1"].tolist() == [0.5]


def test_scoring_is_refused_when_answers_are_missing() -> None:
    with pytest.raises(MetricsError) as refusal:
        span_scores(["Denver"], [])
    assert str(refusal.value) == (
        "measures got predictions and answers of lengths 1 and 0: they describe the same examples. "
        "Gather both from the same examples, in the same order."
    )


def test_scoring_is_refused_when_there_is_nothing_to_score() -> None:
    with pytest.raises(MetricsError, match=r"^measures got no predictions: a mean needs one example\. Check the"):
        span_scores([], [])
