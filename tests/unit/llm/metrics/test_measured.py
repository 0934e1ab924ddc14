"""The JSON form: written, read back, and refused where it is something else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from llm.errors import MetricsError
from llm.metrics import Measured, Outputs, from_json, measure

WHERE = "measures/val.json"


def example() -> Measured:
    random = np.random.default_rng(0)
    labels_N = random.integers(2, size=40)
    yes_N = np.clip(0.5 * labels_N + 0.5 * random.random(40), 0, 1)
    outputs = Outputs(labels=labels_N, probabilities=np.column_stack([1 - yes_N, yes_N]))
    groups = {"length": ["short", "long"] * 20}
    measured = measure("sequence_classification", outputs, names=["no", "yes"], groups=groups, resamples=50)
    return measured.about(dataset="boolq", split="validation", step=100)


def written(**changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(json.dumps(example().to_json(), allow_nan=False))
    return facts | changes


def test_measures_are_the_same_when_written_and_read() -> None:
    assert from_json(written(), WHERE) == example()


def test_measures_say_of_what_they_are() -> None:
    facts = written()
    assert (facts["dataset"], facts["split"], facts["step"]) == ("boolq", "validation", 100)
    assert (facts["task"], facts["examples"], facts["resamples"], facts["confidence"]) == (
        "sequence_classification",
        40,
        50,
        0.95,
    )


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([], "holds a list: measures are a JSON object. Evaluate the checkpoint again to write it anew."),
        (
            {"schema_version": 2},
            "has schema_version 2: this version reads 1. "
            "Read it with the version that wrote it, or evaluate the checkpoint again.",
        ),
        (
            {"schema_version": 1},
            "is not a file of measures: 'task' is missing. Evaluate the checkpoint again to write it anew.",
        ),
    ],
    ids=["list", "version", "empty"],
)
def test_reading_is_refused_when_the_file_is_something_else(facts: object, message: str) -> None:
    with pytest.raises(MetricsError) as refusal:
        from_json(facts, WHERE)
    assert str(refusal.value) == f"{WHERE} {message}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "chess"}, "its task is 'chess', and the tasks are sequence_classification, "),
        ({"headline": []}, "its headline is a list, and must be an object"),
        ({"headline": {"f1": "good"}}, "its f1 is 'good', and must be a finite number or null"),
        ({"headline": {"f1": float("nan")}}, "its f1 is nan, and must be a finite number or null"),
        ({"intervals": {"f1": [0.1]}}, "the interval of f1 is [0.1], and must be two numbers"),
        ({"intervals": {"f1": [0.1, None]}}, "the interval of f1 is [0.1, None], and must be two numbers"),
        (
            {"tables": {"classes": {"columns": ["class", "f1"], "rows": [["no"]]}}},
            "the table classes has a row that is not 2 cells long",
        ),
        (
            {"tables": {"slices/length": {"columns": ["group", "f1"], "rows": []}}},
            "the table slices/length has 2 columns, and must have 5",
        ),
        (
            {"tables": {"confusion": {"columns": ["label", "no", "yes"], "rows": [["no", 1, 2]]}}},
            "the table confusion has 3 columns, and must have 2",
        ),
        (
            {"curves": {"roc": [{"name": "yes", "x": [0, 1], "y": [0]}]}},
            "a curve of roc has 2 x and 1 y, and must have as many, none of them null",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_reading_is_refused_when_a_part_is_damaged(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MetricsError) as refusal:
        from_json(written(**changes), WHERE)
    assert str(refusal.value).startswith(f"{WHERE} is not a file of measures: {reason}")
    assert str(refusal.value).endswith("Evaluate the checkpoint again to write it anew.")
