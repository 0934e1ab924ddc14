"""Figures of tags and entities against scikit-learn and counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn

from llm.metrics import Measured, Outputs, measure
from llm.metrics.intervals import draws
from llm.metrics.tagging import tagging

TOLERANCE = 1e-12
"""Quotients of whole numbers in float64."""
NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
Reference = Callable[..., Any]


def outputs(sentences: int, seed: int = 0) -> Outputs:
    random = np.random.default_rng(seed)
    lengths_N = random.integers(1, 9, size=sentences)
    labels_K = random.integers(len(NAMES), size=lengths_N.sum())
    predictions_K = np.where(random.random(len(labels_K)) < 0.6, labels_K, random.integers(3, size=len(labels_K)))
    return Outputs(labels=labels_K, predictions=predictions_K, lengths=lengths_N)


def tagged(true: list[list[str]], said: list[list[str]], names: tuple[str, ...] = NAMES) -> Measured:
    labels, predictions = ([names.index(tag) for sentence in side for tag in sentence] for side in (true, said))
    lengths = [len(sentence) for sentence in true]
    return measure(
        "token_classification",
        Outputs(labels=labels, predictions=predictions, lengths=lengths),
        names=names,
        resamples=20,
    )


def test_token_figures_equal_scikit_learn_as_they_are_and_for_draws(reference: Reference) -> None:
    data = outputs(10)
    (counts_NR,) = draws(10, 20, seed=0)
    counts_NR = np.column_stack([np.ones(10, dtype=np.int64), counts_NR])
    found = tagging(data, NAMES).drawn(counts_NR)
    for draw, counts_N in enumerate(counts_NR.T):
        tokens = np.repeat(np.arange(len(data.labels)), np.repeat(counts_N, data.lengths))
        pair = (data.labels[tokens], data.predictions[tokens])
        wanted = {
            "accuracy": reference(sklearn.accuracy_score, *pair),
            "precision_macro": reference(sklearn.precision_score, *pair, average="macro"),
            "recall_macro": reference(sklearn.recall_score, *pair, average="macro"),
            "f1_macro": reference(sklearn.f1_score, *pair, average="macro"),
            "f1_weighted": reference(sklearn.f1_score, *pair, average="weighted"),
        }
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name][draw], value, rtol=TOLERANCE, err_msg=name)


def test_entity_figures_count_whole_entities_only() -> None:
    measured = tagged(
        [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]],
        [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-LOC"]],
    )
    assert measured.headline["entity_precision"] == 2 / 4
    assert measured.headline["entity_recall"] == 2 / 3
    assert measured.headline["entity_f1"] == pytest.approx(4 / 7, rel=TOLERANCE)
    assert measured.tables["entity_classes"].rows == (("LOC", 2, 2, 1.0, 1.0, 1.0), ("PER", 1, 2, 0.0, 0.0, 0.0))
    assert measured.headline["entity_f1_macro"] == 0.5


def test_entities_do_not_reach_into_the_next_sentence() -> None:
    measured = tagged([["O", "B-PER"], ["I-PER", "O"]], [["O", "B-PER"], ["O", "O"]])
    assert measured.headline["entity_f1"] == 1.0
    assert measured.headline["accuracy"] == 0.75


def test_entity_figures_of_draws_are_those_of_the_sentences_drawn() -> None:
    data = outputs(8)
    (counts_NR,) = draws(8, 15, seed=1)
    found = tagging(data, NAMES).drawn(counts_NR)
    begins = np.cumsum(data.lengths) - data.lengths
    for draw, counts_N in enumerate(counts_NR.T):
        rows = np.repeat(np.arange(8), counts_N)
        tokens = np.concatenate([np.arange(begins[row], begins[row] + data.lengths[row]) for row in rows])
        drawn = Outputs(labels=data.labels[tokens], predictions=data.predictions[tokens], lengths=data.lengths[rows])
        headline = measure("token_classification", drawn, names=NAMES, resamples=0).headline
        assert found["entity_f1"][draw] == pytest.approx(headline["entity_f1"], rel=TOLERANCE)


def test_entity_figures_are_absent_when_tags_are_parts_of_speech() -> None:
    measured = tagged([["NOUN", "VERB"]], [["NOUN", "NOUN"]], names=("NOUN", "VERB"))
    assert not [name for name in (*measured.headline, *measured.tables) if name.startswith("entity")]
    assert (measured.selection.name, measured.headline["accuracy"]) == ("accuracy", 0.5)
    assert measured.tables["confusion"].rows == (("NOUN", 1, 0), ("VERB", 1, 0))


@pytest.mark.usefixtures("reference")
def test_entity_figures_are_nothing_without_warning_when_there_are_no_entities() -> None:
    measured = tagged([["O", "O"], ["O"]], [["O", "O"], ["O"]])
    assert (measured.headline["entity_f1"], measured.headline["accuracy"]) == (0.0, 1.0)
    assert measured.tables["entity_classes"].rows[0] == ("LOC", 0, 0, None, None, None)
