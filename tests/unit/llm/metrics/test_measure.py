"""The one entry: what it gives for each task, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, get_args

import numpy as np
import pytest

from llm.errors import MetricsError
from llm.metrics import Outputs, Task, measure, selection

EXAMPLES: dict[Task, tuple[Outputs, list[str]]] = {
    "sequence_classification": (
        Outputs(labels=[0, 1, 1, 0], probabilities=[[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]),
        ["no", "yes"],
    ),
    "multi_label_classification": (
        Outputs(labels=[[0, 1], [1, 1], [0, 0]], probabilities=[[0.1, 0.7], [0.6, 0.9], [0.2, 0.6]]),
        ["joy", "fear"],
    ),
    "regression": (Outputs(labels=[1.0, 2.0, 4.0], predictions=[1.5, 2.0, 3.0]), []),
    "token_classification": (
        Outputs(labels=[0, 1, 2, 0], predictions=[0, 1, 0, 0], lengths=[3, 1]),
        ["O", "B-X", "I-X"],
    ),
}


def test_every_task_has_an_example() -> None:
    assert set(EXAMPLES) == set(get_args(Task))


@pytest.mark.parametrize("task", EXAMPLES)
def test_selection_is_a_defined_figure_of_the_headline(task: Task) -> None:
    outputs, names = EXAMPLES[task]
    measured = measure(task, outputs, names=names, resamples=20)
    assert measured.headline[measured.selection.name] is not None
    assert measured.selection == selection(task, names)


@pytest.mark.parametrize("task", EXAMPLES)
def test_measures_are_plain_data_with_intervals_around_figures(task: Task) -> None:
    outputs, names = EXAMPLES[task]
    measured = measure(task, outputs, names=names, resamples=100)
    json.dumps(measured.to_json(), allow_nan=False)
    assert measured.selection.name in measured.intervals
    assert set(measured.intervals) <= {name for name, value in measured.headline.items() if value is not None}
    assert all(low <= high for low, high in measured.intervals.values())


@pytest.mark.parametrize("task", EXAMPLES)
def test_headline_is_the_same_when_no_intervals_are_asked_for(task: Task) -> None:
    outputs, names = EXAMPLES[task]
    quick = measure(task, outputs, names=names, resamples=0)
    assert (quick.intervals, quick.confidence, quick.resamples) == ({}, None, 0)
    assert quick.headline == measure(task, outputs, names=names, resamples=10).headline


def test_selection_wants_small_errors_and_large_scores() -> None:
    wanted = {
        task: (selection(task, names).name, selection(task, names).larger_is_better)
        for task, (_, names) in EXAMPLES.items()
    }
    assert wanted == {
        "sequence_classification": ("f1_macro", True),
        "multi_label_classification": ("f1_macro", True),
        "regression": ("mse", False),
        "token_classification": ("entity_f1", True),
    }


@pytest.mark.parametrize(
    ("task", "outputs", "names", "message"),
    [
        (
            "chess",
            Outputs(labels=[0]),
            [],
            "measures were asked for the task 'chess': the tasks are sequence_classification, "
            "multi_label_classification, regression, token_classification. Name one.",
        ),
        (
            "sequence_classification",
            Outputs(labels=[0]),
            ["no", "yes"],
            "measures of sequence_classification got outputs without probabilities: it reads labels and probabilities. "
            "Pass those, and only those.",
        ),
        (
            "token_classification",
            Outputs(labels=[0], predictions=[0], lengths=[1], probabilities=[[1.0]]),
            ["O", "B-X"],
            "measures of token_classification got outputs with probabilities: it reads labels and predictions and "
            "lengths. Pass those, and only those.",
        ),
        (
            "regression",
            Outputs(labels=[1.0], predictions=[1.0]),
            ["grade"],
            "measures of regression got the names ['grade']: numbers have none. Leave them out.",
        ),
    ],
    ids=["task", "missing", "surplus", "names"],
)
def test_measuring_is_refused_when_outputs_do_not_go_with_the_task(
    task: Any, outputs: Outputs, names: list[str], message: str
) -> None:
    with pytest.raises(MetricsError) as refusal:
        measure(task, outputs, names=names)
    assert str(refusal.value) == message


def test_measuring_imports_no_torch() -> None:
    code = (
        "import sys; from llm.metrics import Outputs, measure; "
        "outputs = Outputs(labels=[0, 1], probabilities=[[0.6, 0.4], [0.3, 0.7]]); "
        "measure('sequence_classification', outputs, names=['no', 'yes']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_measures_imports_neither_torch_nor_scikit_learn() -> None:
    code = "import sys; from llm.metrics import from_json; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_figures_do_not_change_when_probabilities_are_float32() -> None:
    outputs, names = EXAMPLES["sequence_classification"]
    narrow = Outputs(labels=outputs.labels, probabilities=np.array(outputs.probabilities, dtype=np.float32))
    wide = measure("sequence_classification", outputs, names=names, resamples=0).headline
    assert measure("sequence_classification", narrow, names=names, resamples=0).headline == pytest.approx(
        wide, rel=1e-6
    )
