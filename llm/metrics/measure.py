"""The one entry: from what a model said of the examples of a split to everything a report shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm.errors import MetricsError
from llm.metrics.classification import classification
from llm.metrics.entities import entity_tags
from llm.metrics.inputs import same_length
from llm.metrics.intervals import CONFIDENCE, RESAMPLES, percentile_intervals
from llm.metrics.measured import TASKS, Measured, Selection, Table, Task
from llm.metrics.measures import Measures, Outputs
from llm.metrics.multi_label import multi_label
from llm.metrics.regression import regression
from llm.metrics.slices import gap_table, largest_gap, slice_table, slices_of
from llm.metrics.tagging import tagging


def measure(
    task: Task,
    outputs: Outputs,
    *,
    names: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measured:
    """Measure predictions.

    Args:
        task: What the model was asked; it decides which of the outputs are read.
        outputs: Of all examples, gathered from all ranks, each example once.
        names: Of classes, labels or tags, by index; none for regression. Of two classes the second is the positive one.
        groups: Columns of groups by name, with a value for each example, to compare the selection's figure between.
        resamples: Bootstrap draws; 0 for no intervals, as within training.
        seed: Of the draws.

    Raises:
        MetricsError: The outputs do not go together, or not with the task.
    """
    measures = _measures(task, outputs, names)
    chosen = selection(task, names)
    intervals = {}
    if resamples:
        found = percentile_intervals(measures.drawn, measures.examples, resamples=resamples, seed=seed)
        intervals = {name: ends for name, ends in found.items() if measures.headline[name] is not None}
    return Measured(
        task=task,
        examples=measures.examples,
        headline=measures.headline,
        selection=chosen,
        intervals=intervals,
        confidence=CONFIDENCE if resamples else None,
        resamples=resamples,
        tables={**measures.tables, **_slices(measures, groups or {}, chosen.name, resamples, seed)},
        curves=measures.curves,
    )


def selection(task: Task, names: Sequence[str] = ()) -> Selection:
    """The figure that checkpoints are chosen by.

    Macro-averaged F1 for classes and labels, since accuracy rewards the commonest class; the squared error for numbers;
    F1 of entities for tags of entities, accuracy for other tags.
    """
    if task == "regression":
        return Selection(name="mse", larger_is_better=False)
    if task == "token_classification":
        return Selection(name="accuracy" if entity_tags(names) is None else "entity_f1", larger_is_better=True)
    return Selection(name="f1_macro", larger_is_better=True)


def _measures(task: Task, outputs: Outputs, names: Sequence[str]) -> Measures:
    if task not in TASKS:
        raise MetricsError(f"measures were asked for the task {task!r}: the tasks are {', '.join(TASKS)}. Name one.")
    needed = {
        "sequence_classification": ("probabilities",),
        "multi_label_classification": ("probabilities",),
        "regression": ("predictions",),
        "token_classification": ("predictions", "lengths"),
    }[task]
    for name in ("probabilities", "predictions", "lengths"):
        if (getattr(outputs, name) is None) == (name in needed):
            raise MetricsError(
                f"measures of {task} got outputs {'without' if name in needed else 'with'} {name}: it reads labels and "
                f"{' and '.join(needed)}. Pass those, and only those."
            )
    if task == "regression":
        if len(names):
            raise MetricsError(
                f"measures of regression got the names {list(names)}: numbers have none. Leave them out."
            )
        return regression(outputs)
    build = {
        "sequence_classification": classification,
        "multi_label_classification": multi_label,
        "token_classification": tagging,
    }[task]
    return build(outputs, names)


def _slices(
    measures: Measures, groups: Mapping[str, Sequence[str]], name: str, resamples: int, seed: int
) -> dict[str, Table]:
    tables, gaps = {}, []
    for column, values in groups.items():
        same_length(values, range(measures.examples), f"the groups {column!r} and the examples")
        slices = slices_of(values, measures.of_rows, name, resamples=resamples, seed=seed)
        tables[f"slices/{column}"] = slice_table(slices, name)
        if (gap := largest_gap(column, slices)) is not None:
            gaps.append(gap)
    return {**tables, "gaps": gap_table(gaps)} if gaps else tables
