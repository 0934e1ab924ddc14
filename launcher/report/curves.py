"""The curves of the runs as the page's script draws them: small, rounded, plain JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.report.charts import Chart, charts_of
from launcher.report.downsample import bucket_means, extreme_points, spread
from launcher.report.events import describe, title, tone
from launcher.report.headline import baseline
from launcher.report.metrics import Evaluation
from launcher.report.runs import ReportedRun

_BUCKETS = 1500  # of a long series; a wide screen has about as many columns of pixels
_BUCKETS_OF_PAGE = 24_000  # of all series together: 125 bytes each, which keeps the page near 3 MB
_EVENT_MARKS = 400
_ATTEMPT_BANDS = 200
_AXES = ("step", "tokens", "seconds")


def page_data(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """Everything that the page's script needs, ready for `json.dumps`."""
    charts = charts_of(runs)
    buckets = _buckets(charts, runs)
    known = {axis for run in runs for axis in run.axes.names()}
    return {
        "axes": [axis for axis in _AXES if axis in known],
        "runs": [{"label": run.label} for run in runs],
        "charts": [_chart(chart, runs, buckets) for chart in charts],
        "events": [mark for run in runs for mark in _event_marks(run, _EVENT_MARKS // len(runs))],
        "attempts": [band for run in runs for band in _attempt_bands(run)],
        "buckets": buckets,
    }


def _buckets(charts: list[Chart], runs: Sequence[ReportedRun]) -> int:
    """Of each series, so that the page stays small however many it has."""
    series = sum(chart.has_training(run) + len(chart.evaluated(run)) for chart in charts for run in runs)
    return min(_BUCKETS, max(1, _BUCKETS_OF_PAGE // max(1, series)))


def _chart(chart: Chart, runs: Sequence[ReportedRun], buckets: int) -> dict[str, Any]:
    series: list[dict[str, Any]] = []
    for run in runs:
        if chart.has_training(run):
            series.append({"run": run.place, **_train_series(chart, run, buckets)})
        for name in chart.evaluated(run):
            lines = [line for line in run.record.evaluations if line.name == name and chart.eval_key in line.values]
            series.append({"run": run.place, **_eval_series(chart, name, lines, run, buckets)})
    return {
        "title": chart.title,
        "unit": chart.unit,
        "note": chart.note,
        "logarithmic": chart.logarithmic,
        "geometric": chart.geometric,
        "large": chart.large,
        "series": series,
        "levels": _levels(runs) if chart.suffix == "perplexity" else [],
    }


def _train_series(chart: Chart, run: ReportedRun, buckets: int) -> dict[str, Any]:
    values = run.record.train.column(chart.train_key) * chart.scale
    points = extreme_points(values, buckets)
    series: dict[str, Any] = {
        "label": "training",
        "role": "train",
        **run.axes.columns(points),
        "value": _rounded(values[points]),
        "nonfinite": int(np.isinf(values).sum()),
    }
    if chart.noisy:
        means = bucket_means(values, buckets, geometric=chart.geometric)
        counts = means.count.tolist()
        series["mean"] = {**run.axes.columns(means.index), "value": _rounded(means.mean), "count": counts}
    return series


def _eval_series(chart: Chart, name: str, lines: list[Evaluation], run: ReportedRun, buckets: int) -> dict[str, Any]:
    values = np.array([line.values[chart.eval_key] for line in lines]) * chart.scale
    kept = extreme_points(values, buckets).tolist()
    places = [run.axes.at_step(lines[row].step, lines[row].time_unix_seconds) for row in kept]
    columns = {axis: [place[axis] for place in places] for axis in _AXES}
    return {
        "label": name if name.startswith("validation") else f"validation {name}",
        "role": "eval",
        **{axis: None if None in column else column for axis, column in columns.items()},
        "value": _rounded(values[kept]),
        "nonfinite": int(np.isinf(values).sum()),
    }


def _levels(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Horizontal lines: what a simple model reaches on the same tokens, said once where runs agree on it."""
    found: dict[tuple[str, float], list[int]] = {}
    for run in runs:
        if (simple := baseline(run.record)) is not None:
            found.setdefault(simple, []).append(run.place)
    labels = {run.place: run.label for run in runs}
    return [
        {"label": name if len(found) == 1 else f"{name}, {labels[places[0]]}", "value": value, "runs": places}
        for (name, value), places in found.items()
    ]


def _event_marks(run: ReportedRun, limit: int) -> list[dict[str, Any]]:
    """Events for the axes. Saved checkpoints are many and calm; they are thinned apart from the rest."""
    marks = []
    for routine in (True, False):
        events = [event for event in run.record.events if (tone(event) == "tick") is routine]
        for row in spread(len(events), limit):
            place = run.axes.of_event(events[row])
            mark = {"title": title(events[row]), "tone": tone(events[row]), "detail": describe(events[row])}
            marks.append({"run": run.place, **place, **mark})
    return marks


def _attempt_bands(run: ReportedRun) -> list[dict[str, Any]]:
    attempts = run.axes.attempts()
    if not 1 < len(attempts) <= _ATTEMPT_BANDS:
        return []
    return [{"run": run.place, "attempt": attempt, "first": first, "last": last} for attempt, first, last in attempts]


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    """Six significant digits, which is finer than a pixel; null where not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]
