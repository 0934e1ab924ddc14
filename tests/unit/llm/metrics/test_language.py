"""Figures of language models, against formulas written out and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.metrics.language import NOTHING, Share, TokenSums, likeliest, token_sums, wilson_interval

EXACT = 1e-12
"""Double precision, a few operations."""


def test_figures_follow_from_the_sums() -> None:
    sums = TokenSums(targets=4, loss_nats=8.0, utf8_bytes=10, first=1, among_five=3)
    assert sums.figures() == {
        "tokens": 4,
        "loss": 2.0,
        "perplexity": pytest.approx(math.e**2),
        "bytes": 10,
        "bits_per_byte": pytest.approx(8 * math.log2(math.e) / 10),
        "top1_accuracy": 0.25,
        "top5_accuracy": 0.75,
    }


def test_figures_are_null_when_there_is_nothing_to_divide_by() -> None:
    figures = NOTHING.figures()
    assert (figures.pop("tokens"), figures.pop("bytes")) == (0, 0)
    assert set(figures.values()) == {None}


def test_perplexity_is_infinite_when_it_overflows() -> None:
    assert TokenSums(targets=1, loss_nats=1e4, utf8_bytes=1, first=0, among_five=0).figures()["perplexity"] == math.inf


@given(tokens=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 9), st.integers(0, 3)), max_size=40))
def test_sums_of_groups_are_those_of_their_tokens(tokens: list[tuple[float, int, int]]) -> None:
    losses, ranks, groups = (np.array([token[part] for token in tokens]) for part in range(3))
    found = token_sums(losses, ranks.astype(int), groups.astype(int), 4)
    for group, sums in enumerate(found):
        mine = [token for token in tokens if token[2] == group]
        assert sums.targets == len(mine)
        assert sums.loss_nats == pytest.approx(math.fsum(token[0] for token in mine), abs=EXACT * 800)
        assert sums.first == sum(token[1] == 0 for token in mine)
        assert sums.among_five == sum(token[1] < 5 for token in mine)
    assert sum(found, NOTHING).targets == len(tokens)


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 1 - 0.1611, 1.0),
    ],
)
def test_interval_is_the_one_published(right: int, asked: int, low: float, high: float) -> None:
    assert wilson_interval(right, asked) == pytest.approx((low, high), abs=5e-5)


def test_share_of_nothing_has_no_value() -> None:
    nothing = Share(right=0, asked=0)
    assert (nothing.value, nothing.interval) == (None, None)
    assert (nothing + Share(right=1, asked=4)).value == 0.25


@pytest.mark.parametrize(
    ("log_probabilities", "lengths", "choice"),
    [
        ([-4.0, -3.0, -5.0], None, 1),
        ([-4.0, -3.0, -5.0], [4, 1, 10], 2),
        ([-3.0, -3.0], None, 0),
    ],
)
def test_likeliest_choice_may_depend_on_its_length(
    log_probabilities: list[float], lengths: list[int] | None, choice: int
) -> None:
    assert likeliest(log_probabilities, lengths) == choice
