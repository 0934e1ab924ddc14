"""What was measured of one dataset and split, and its JSON form, which the run directory keeps and the report draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from llm.errors import MetricsError
from llm.metrics.intervals import Interval

Task = Literal["sequence_classification", "multi_label_classification", "regression", "token_classification"]
TASKS: tuple[Task, ...] = get_args(Task)
SCHEMA_VERSION = 1

Cell = str | int | float | None
Curve = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under columns."""

    columns: tuple[str, ...]
    """Headings, the first one of what the rows are named by."""
    rows: tuple[tuple[Cell, ...], ...]
    """Null where a figure is undefined."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The figure that checkpoints are chosen by."""

    name: str
    """Its key in the headline."""
    larger_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that was measured of the predictions for one dataset and split."""

    task: Task
    examples: int
    """Predictions that were measured: texts, sentences."""
    headline: dict[str, float | None]
    """Figures by flat name, null where undefined."""
    selection: Selection
    """Which of the headline checkpoints are chosen by."""
    intervals: dict[str, Interval] = field(default_factory=dict)
    """Bootstrap percentile intervals of figures of the headline."""
    confidence: float | None = None
    """Share of the draws inside the intervals; null without intervals."""
    resamples: int = 0
    """Bootstrap draws."""
    tables: dict[str, Table] = field(default_factory=dict)
    """By name: `classes`, `averages`, `confusion`, `calibration`, `slices/COLUMN` and others, as the task has them."""
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    """By name: lines or points, each with `name`, `x`, `y` and perhaps `area`."""
    dataset: str = ""
    """What was predicted; empty where the caller did not say."""
    split: str = ""
    """Of that dataset."""
    step: int | None = None
    """Optimizer steps of the checkpoint that predicted."""

    def about(self, *, dataset: str, split: str, step: int | None) -> Measured:
        """The same measures, saying of what they are."""
        return replace(self, dataset=dataset, split=split, step=step)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps(..., allow_nan=False)`."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def from_json(facts: object, where: str) -> Measured:
    """Read measures back.

    Args:
        facts: The decoded JSON.
        where: The file, for messages.

    Raises:
        MetricsError: it is not of this form or version.
    """
    if not isinstance(facts, dict):
        raise MetricsError(f"{where} holds a {type(facts).__name__}: measures are a JSON object. {_AGAIN}")
    version = facts.get("schema_version")
    if version != SCHEMA_VERSION:
        raise MetricsError(
            f"{where} has schema_version {version!r}: this version reads {SCHEMA_VERSION}. "
            "Read it with the version that wrote it, or evaluate the checkpoint again."
        )
    try:
        return _measured(facts)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise MetricsError(f"{where} is not a file of measures: {reason}. {_AGAIN}") from error


_WIDTHS = {"slices": 5, "gaps": 6, "calibration": 4, "residual_histogram": 3}
"""Columns of tables that are drawn."""
_AGAIN = "Evaluate the checkpoint again to write it anew."


def _measured(facts: Mapping[str, Any]) -> Measured:
    if facts["task"] not in TASKS:
        raise ValueError(f"its task is {facts['task']!r}, and the tasks are {', '.join(TASKS)}")
    selection = facts["selection"]
    return Measured(
        task=facts["task"],
        examples=int(facts["examples"]),
        headline={str(name): _figure(name, value) for name, value in _object(facts, "headline").items()},
        selection=Selection(name=str(selection["name"]), larger_is_better=bool(selection["larger_is_better"])),
        intervals={str(name): _interval(name, pair) for name, pair in _object(facts, "intervals").items()},
        confidence=_figure("confidence", facts["confidence"]),
        resamples=int(facts["resamples"]),
        tables={str(name): _table(name, table) for name, table in _object(facts, "tables").items()},
        curves={str(name): [_curve(name, line) for line in lines] for name, lines in _object(facts, "curves").items()},
        dataset=str(facts["dataset"]),
        split=str(facts["split"]),
        step=None if facts["step"] is None else int(facts["step"]),
    )


def _object(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = facts[key]
    if not isinstance(value, dict):
        raise ValueError(f"its {key} is a {type(value).__name__}, and must be an object")
    return value


def _figure(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its {name} is {value!r}, and must be a finite number or null")
    return float(value)


def _interval(name: str, pair: object) -> Interval:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError(f"the interval of {name} is {pair!r}, and must be two numbers")
    low, high = _figure(name, pair[0]), _figure(name, pair[1])
    if low is None or high is None:
        raise ValueError(f"the interval of {name} is {pair!r}, and must be two numbers")
    return low, high


def _table(name: str, table: Mapping[str, Any]) -> Table:
    columns = tuple(str(column) for column in table["columns"])
    rows = tuple(tuple(_cell(name, value) for value in row) for row in table["rows"])
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"the table {name} has a row that is not {len(columns)} cells long")
    width = len(rows) + 1 if name == "confusion" else _WIDTHS.get(name.partition("/")[0], len(columns))
    if len(columns) != width:
        raise ValueError(f"the table {name} has {len(columns)} columns, and must have {width}")
    return Table(columns=columns, rows=rows)


def _cell(name: str, value: object) -> Cell:
    if value is None or isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return _figure(f"table {name}", value)


def _curve(name: str, line: Mapping[str, Any]) -> Curve:
    x, y = ([_figure(f"curve {name}", value) for value in line[axis]] for axis in ("x", "y"))
    if len(x) != len(y) or None in x or None in y:
        raise ValueError(f"a curve of {name} has {len(x)} x and {len(y)} y, and must have as many, none of them null")
    return {**line, "name": str(line["name"]), "x": x, "y": y}
