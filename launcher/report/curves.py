"""The curves of a run as the page's script draws them: small, rounded, plain JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.report.axes import RunAxes
from launcher.report.downsample import bucket_means, extreme_points, spread
from launcher.report.events import describe, title, tone
from launcher.report.json_facts import finite
from launcher.report.metrics import Evaluation
from launcher.report.record import RunRecord

BUCKETS = 1500
"""Of each long series; a wide screen has about as many columns of pixels."""
_FURTHER_CHARTS = 24
_EVENT_MARKS = 400
_ATTEMPT_BANDS = 200


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What one chart shows."""

    title: str
    unit: str
    suffix: str
    """Key after `train/` and `eval/`, or the whole key where it has another prefix."""
    scale: float = 1.0
    """Logged value times this is the drawn one."""
    logarithmic: bool = False
    geometric: bool = False
    noisy: bool = True
    """Smoothing helps; a schedule or a peak is exact and would be blurred."""
    large: bool = False

    @property
    def train_key(self) -> str:
        return self.suffix if "/" in self.suffix else f"train/{self.suffix}"

    @property
    def eval_key(self) -> str:
        return self.suffix if "/" in self.suffix else f"eval/{self.suffix}"


CHARTS = (
    Chart(title="Loss", unit="nats per token", suffix="loss", large=True),
    Chart(
        title="Perplexity",
        unit="per token",
        suffix="perplexity",
        logarithmic=True,
        geometric=True,
        large=True,
    ),
    Chart(title="Learning rate", unit="per step", suffix="learning_rate", noisy=False),
    Chart(title="Gradient norm", unit="L2", suffix="grad_norm"),
    Chart(title="Throughput", unit="tokens/s", suffix="speed/tokens_per_second"),
    Chart(title="Peak memory", unit="GiB", suffix="memory/peak_bytes", scale=2.0**-30, noisy=False),
    Chart(title="Model FLOP utilisation", unit="%", suffix="speed/mfu", scale=100.0),
)


def page_data(record: RunRecord, axes: RunAxes) -> dict[str, Any]:
    """Everything that the page's script needs, ready for `json.dumps`."""
    drawn = [_chart(chart, record, axes) for chart in (*CHARTS, *_further_charts(record))]
    return {
        "axes": axes.names(),
        "charts": [chart for chart in drawn if chart["series"]],
        "events": _event_marks(record, axes),
        "attempts": _attempt_bands(axes),
    }


def _further_charts(record: RunRecord) -> list[Chart]:
    """A chart for each logged figure that none of ours shows: task metrics, extra losses."""
    shown = {key for chart in CHARTS for key in (chart.train_key, chart.eval_key)} | {"train/tokens"}
    keys = {key for key, values in record.train.values.items() if not np.isnan(values).all()}
    keys |= {key for line in record.evaluations for key in line.values}
    suffixes = {key.removeprefix("train/").removeprefix("eval/") for key in keys - shown}
    named = sorted(suffix for suffix in suffixes if suffix)[:_FURTHER_CHARTS]
    return [Chart(title=suffix.replace("_", " "), unit="as logged", suffix=suffix) for suffix in named]


def _chart(chart: Chart, record: RunRecord, axes: RunAxes) -> dict[str, Any]:
    series: list[dict[str, Any]] = []
    values = record.train.column(chart.train_key) * chart.scale
    if not np.isnan(values).all():
        series.append(_train_series(chart, values, axes))
    for name in sorted({line.name for line in record.evaluations if chart.eval_key in line.values}):
        lines = [line for line in record.evaluations if line.name == name and chart.eval_key in line.values]
        series.append(_eval_series(chart, name, lines, axes))
    return {
        "title": chart.title,
        "unit": chart.unit,
        "logarithmic": chart.logarithmic,
        "geometric": chart.geometric,
        "large": chart.large,
        "series": series,
        "levels": _levels(chart, record),
    }


def _train_series(chart: Chart, values: NDArray[np.float64], axes: RunAxes) -> dict[str, Any]:
    points = extreme_points(values, BUCKETS)
    series: dict[str, Any] = {
        "label": "training",
        "role": "train",
        **axes.columns(points),
        "value": _rounded(values[points]),
        "nonfinite": int(np.isinf(values).sum()),
    }
    if chart.noisy:
        means = bucket_means(values, BUCKETS, geometric=chart.geometric)
        counts = means.count.tolist()
        series["mean"] = {**axes.columns(means.index), "value": _rounded(means.mean), "count": counts}
    return series


def _eval_series(chart: Chart, name: str, lines: list[Evaluation], axes: RunAxes) -> dict[str, Any]:
    values = np.array([line.values[chart.eval_key] for line in lines]) * chart.scale
    kept = extreme_points(values, BUCKETS).tolist()
    places = [axes.at_step(lines[row].step, lines[row].time_unix_seconds) for row in kept]
    columns = {axis: [place[axis] for place in places] for axis in ("step", "tokens", "seconds")}
    return {
        "label": name if name.startswith("validation") else f"validation {name}",
        "role": "eval",
        **{axis: None if None in column else column for axis, column in columns.items()},
        "value": _rounded(values[kept]),
        "nonfinite": int(np.isinf(values).sum()),
    }


def _levels(chart: Chart, record: RunRecord) -> list[dict[str, Any]]:
    """Horizontal lines: what a simple model reaches on the same tokens."""
    baseline = record.facts.get("baseline")
    if chart.suffix != "perplexity" or not isinstance(baseline, dict):
        return []
    perplexity = finite(baseline.get("perplexity"))
    return [] if perplexity is None else [{"label": str(baseline.get("name", "baseline")), "value": perplexity}]


def _event_marks(record: RunRecord, axes: RunAxes) -> list[dict[str, Any]]:
    """Events for the axes. Saved checkpoints are many and calm; they are thinned apart from the rest."""
    marks = []
    for routine in (True, False):
        events = [event for event in record.events if (tone(event) == "tick") is routine]
        for row in spread(len(events), _EVENT_MARKS):
            place = axes.of_event(events[row])
            mark = {"title": title(events[row]), "tone": tone(events[row]), "detail": describe(events[row])}
            marks.append({**place, **mark})
    return marks


def _attempt_bands(axes: RunAxes) -> list[dict[str, Any]]:
    attempts = axes.attempts()
    if not 1 < len(attempts) <= _ATTEMPT_BANDS:
        return []
    return [{"attempt": attempt, "first": first, "last": last} for attempt, first, last in attempts]


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    """Six significant digits, which is finer than a pixel; null where not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]
