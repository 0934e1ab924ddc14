"""What is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from llm.errors import MetricsError
from llm.metrics import Outputs, Task, measure

NAN = float("nan")
TWO = ["no", "yes"]


def refusal(task: Task, names: list[str], **arrays: Any) -> str:
    with pytest.raises(MetricsError) as error:
        measure(task, Outputs(**arrays), names=names)
    return str(error.value)


@pytest.mark.parametrize(
    ("names", "labels", "probabilities", "message"),
    [
        (
            ["no"],
            [0],
            [[1.0]],
            "measures got 1 class names (['no']): at least 2 must be told apart. "
            "Pass `names` with one name for each class index.",
        ),
        (
            ["no", "no"],
            [0],
            [[0.5, 0.5]],
            "measures got the class name 'no' more than once: two rows of a table could not be told apart. "
            "Give each index a name of its own.",
        ),
        (
            TWO,
            [0],
            [[0.1, 0.2, 0.7]],
            "measures got probabilities of shape (1, 3): with 2 names it must be (examples, 2). "
            "Pass one row for each example and one column for each name.",
        ),
        (
            TWO,
            [0, 1],
            [[0.5, 0.5], [NAN, 0.5]],
            "measures got probabilities of which the one at [1, 0] is nan: all must be finite. "
            "The model has diverged or the labels have gaps; take an earlier checkpoint, or leave the examples out.",
        ),
        (
            TWO,
            [0, 1],
            [[0.5, 0.5], [-0.5, 1.5]],
            "probability 0 of example 1 is -0.5: it must lie from 0 to 1. Pass the softmax or sigmoid of the logits.",
        ),
        (
            TWO,
            [0, 1],
            [[0.5, 0.5], [0.5, 0.6]],
            "the probabilities of example 1 sum to 1.1: those of classes that exclude each other sum to 1, within "
            "0.001. Pass the softmax of the logits, in float32 or wider.",
        ),
        (
            TWO,
            [0, 2],
            [[0.5, 0.5], [0.5, 0.5]],
            "label 1 is 2: with 2 names it must lie from 0 to 1. "
            "Leave out what has no label (-100), or name every class.",
        ),
        (
            TWO,
            [0, -100],
            [[0.5, 0.5], [0.5, 0.5]],
            "label 1 is -100: with 2 names it must lie from 0 to 1. "
            "Leave out what has no label (-100), or name every class.",
        ),
        (
            TWO,
            [0],
            [[0.5, 0.5], [0.5, 0.5]],
            "measures got labels of shape (1,): one is needed for each of the 2 predictions. "
            "Gather both from the same examples, in the same order.",
        ),
        (
            TWO,
            [0.0, 1.0],
            [[0.5, 0.5], [0.5, 0.5]],
            "measures got labels of dtype float64: classes are counted, by whole numbers. Pass an integer array.",
        ),
        (
            TWO,
            [],
            [[], []],
            "measures got probabilities of shape (2, 0): with 2 names it must be (examples, 2). "
            "Pass one row for each example and one column for each name.",
        ),
    ],
)
def test_classes_are_refused_when_arrays_do_not_go_together(
    names: list[str], labels: list[Any], probabilities: list[list[float]], message: str
) -> None:
    assert refusal("sequence_classification", names, labels=labels, probabilities=probabilities) == message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0, 1],
            "measures got a label matrix of shape (2,): the probabilities have (2, 2). "
            "Pass one row for each example and one column for each label.",
        ),
        (
            [[0, 1], [2, 0]],
            "label 0 of example 1 is 2: an example has a label (1) or has not (0). "
            "Leave out examples whose labels are unknown.",
        ),
    ],
)
def test_label_matrix_is_refused_when_it_is_none(labels: list[Any], message: str) -> None:
    assert refusal("multi_label_classification", TWO, labels=labels, probabilities=[[0.1, 0.9], [0.2, 0.3]]) == message


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        (
            [[1.0]],
            [1.0],
            "measures got labels of shape (1, 1): regression has one number for each example. "
            "Squeeze the last axis, or measure each target by itself.",
        ),
        (
            [1.0, 2.0],
            [1.0],
            "measures got predictions and labels of lengths 1 and 2: they describe the same examples. "
            "Gather both from the same examples, in the same order.",
        ),
        ([], [], "measures got no predictions: a mean needs one example. Check the dataset's split."),
        (
            [float("inf")],
            [1.0],
            "measures got labels of which the one at [0] is inf: all must be finite. "
            "The model has diverged or the labels have gaps; take an earlier checkpoint, or leave the examples out.",
        ),
    ],
)
def test_numbers_are_refused_when_they_do_not_go_together(
    labels: list[Any], predictions: list[Any], message: str
) -> None:
    assert refusal("regression", [], labels=labels, predictions=predictions) == message


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (
            [1.5],
            "measures got lengths of dtype float64 and shape (1,): each example needs the whole number of its labelled "
            "tokens. Pass an integer array with one length for each example.",
        ),
        (
            [2, 0],
            "measures got 2 lengths from 0 up with sum 2, and 3 labelled tokens: each example has at least 1, and "
            "together they have all. Count the labelled tokens of each example, and leave out examples without any.",
        ),
    ],
)
def test_lengths_are_refused_when_they_do_not_cover_the_tokens(lengths: list[Any], message: str) -> None:
    arrays = {"labels": [0, 1, 0], "predictions": [0, 1, 1], "lengths": lengths}
    assert refusal("token_classification", ["O", "B-X"], **arrays) == message


def test_predicted_tag_is_refused_when_it_has_no_name() -> None:
    arrays = {"labels": [0, 1], "predictions": [0, 5], "lengths": [2]}
    assert refusal("token_classification", ["O", "B-X"], **arrays) == (
        "predicted tag 1 is 5: with 2 names it must lie from 0 to 1. "
        "Leave out what has no label (-100), or name every class."
    )
