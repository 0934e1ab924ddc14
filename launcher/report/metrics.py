"""metrics.jsonl as columns of train lines and a list of eval lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.storage.operations import StoragePath
from launcher.report.json_facts import Facts, finite, number, read_chunks, whole

Floats = NDArray[np.float64]
_PLAIN = {int, float, type(None)}


@dataclass(frozen=True, kw_only=True)
class TrainLog:
    """The train lines by step, as columns of one length: NaN where absent, infinity where not finite."""

    step: Floats
    time_unix_seconds: Floats
    attempt: Floats
    values: dict[str, Floats]
    """By key of metrics.jsonl, such as `train/loss`."""

    def __len__(self) -> int:
        return len(self.step)

    def column(self, key: str) -> Floats:
        """The values of one key; all NaN where the run never logged it."""
        return self.values.get(key, np.full(len(self), np.nan))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One eval line."""

    name: str
    """The dataset."""
    step: int
    time_unix_seconds: float | None
    attempt: int | None
    values: dict[str, float]
    """By key, such as `eval/loss`; infinity where the value was not finite."""


def read_metrics(path: StoragePath, complaints: list[str]) -> tuple[TrainLog, list[Evaluation]]:
    """Read metrics.jsonl. Where (kind, name, step) was written twice, the last line stands.

    Returns:
        The train lines, and the eval lines ordered by step and name.
    """
    evaluations: dict[tuple[str, int], Evaluation] = {}
    chunks: list[dict[str, Floats]] = []
    for lines in read_chunks(path, complaints):
        for line in lines:
            if "nonfinite" in line:
                _mark_nonfinite(line)
        for line in lines:
            if line.get("kind") == "eval" and (step := whole(line.get("step"))) is not None:
                evaluation = _evaluation(line, step)
                evaluations[evaluation.name, step] = evaluation
        train = [line for line in lines if line.get("kind") == "train"]
        if train:
            chunks.append(_columns(train))
    ordered = sorted(evaluations.values(), key=lambda evaluation: (evaluation.step, evaluation.name))
    return _train_log(chunks), ordered


def _mark_nonfinite(line: Facts) -> None:
    keys = line["nonfinite"]
    for key in keys if isinstance(keys, list) else []:
        if isinstance(key, str) and "/" in key:
            line[key] = math.inf


def _evaluation(line: Facts, step: int) -> Evaluation:
    values = {key: found for key, value in line.items() if "/" in key and (found := number(value)) is not None}
    return Evaluation(
        name=str(line.get("name", "validation")),
        step=step,
        time_unix_seconds=finite(line.get("time_unix_seconds")),
        attempt=whole(line.get("attempt")),
        values=values,
    )


def _columns(lines: list[Facts]) -> dict[str, Floats]:
    """Lines to columns. Keys are taken from all of them: a metric may begin in mid-run."""
    layouts = {tuple(line) for line in lines}
    keys = {"step", "time_unix_seconds", "attempt"} | {key for layout in layouts for key in layout if "/" in key}
    return {key: _column([line.get(key) for line in lines]) for key in keys}


def _column(values: list[object]) -> Floats:
    if set(map(type, values)) <= _PLAIN:
        try:
            return np.array(values, dtype=np.float64)  # None becomes NaN; the quick way of nearly every column
        except OverflowError:
            pass
    return np.array([np.nan if (found := number(value)) is None else found for value in values])


def _train_log(chunks: list[dict[str, Floats]]) -> TrainLog:
    columns: dict[str, Floats] = {}
    for key in sorted({key for chunk in chunks for key in chunk}):
        parts = [chunk.get(key, np.full(len(chunk["step"]), np.nan)) for chunk in chunks]
        columns[key] = np.concatenate(parts)
    none = np.empty(0)
    step = columns.pop("step", none)
    order = np.argsort(step, kind="stable")
    order = order[np.isfinite(step[order])]
    if len(order):
        ordered = step[order]
        order = order[np.append(ordered[1:] != ordered[:-1], True)]
    return TrainLog(
        step=step[order],
        time_unix_seconds=_filled(columns.pop("time_unix_seconds", none)[order]),
        attempt=_filled(columns.pop("attempt", none)[order]).round(),
        values={key: values[order] for key, values in columns.items()},
    )


def _filled(values: Floats) -> Floats:
    """Gaps filled from their neighbours, so that axes have no holes; unchanged where nothing is known."""
    known = np.isfinite(values)
    if not known.any() or known.all():
        return values
    places = np.arange(len(values))
    return np.interp(places, places[known], values[known])
