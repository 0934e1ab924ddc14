"""Which charts a page has: ours, and one for each further figure that a run logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from launcher.report.figure_names import title_of
from launcher.report.headline import learns_labels
from launcher.report.runs import ReportedRun, memory_unit
from launcher.report.words import heading

_FURTHER_CHARTS = 24


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
    note: str = ""
    """What it is, where the title leaves that open."""

    @property
    def train_key(self) -> str:
        return self.suffix if "/" in self.suffix else f"train/{self.suffix}"

    @property
    def eval_key(self) -> str:
        return self.suffix if "/" in self.suffix else f"eval/{self.suffix}"

    def has_training(self, run: ReportedRun) -> bool:
        """Whether the run logged it while it trained."""
        return not np.isnan(run.record.train.column(self.train_key)).all()

    def evaluated(self, run: ReportedRun) -> list[str]:
        """The datasets that the run evaluated it on, sorted."""
        return sorted({line.name for line in run.record.evaluations if self.eval_key in line.values})


_CHARTS = (
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
    Chart(title="Peak memory", unit="bytes", suffix="memory/peak_bytes", noisy=False),
    Chart(title="Model FLOP utilisation", unit="%", suffix="speed/mfu", scale=100.0),
    Chart(
        title="Busiest expert",
        unit="× an even share",
        suffix="router/largest_load",
        note="The expert that most tokens chose, of all layers. At 1 all are chosen alike; steps wait for the busiest.",
    ),
    Chart(
        title="Idlest expert",
        unit="× an even share",
        suffix="router/smallest_load",
        note="The expert that fewest tokens chose, of all layers. At 0 none did, and it learns nothing.",
    ),
    Chart(
        title="Balance of the routers",
        unit="1 where even",
        suffix="router_balance",
        note="Within a sequence the sum over experts of their share of the choices times their mean probability, times "
        "the number of experts. Mean over sequences and layers, before its weight (arXiv:2412.19437, eq. 17-20).",
    ),
    Chart(
        title="Z-loss of the routers",
        unit="nats²",
        suffix="router_z",
        note="Squared logsumexp of the routers' scores, mean over tokens and layers, before its weight "
        "(arXiv:2202.08906, eq. 5). It grows with the scores, and with their rounding errors.",
    ),
    Chart(
        title="Z-loss",
        unit="per token",
        suffix="z_loss",
        note="Squared logsumexp of the logits times its weight. It is minimised beside the loss, whose curve leaves it "
        "out.",
    ),
)


def charts_of(runs: Sequence[ReportedRun]) -> list[Chart]:
    """The charts that have something to show, ours first."""
    size, name = memory_unit(runs)
    charts = [chart if chart.unit != "bytes" else replace(chart, unit=name, scale=1 / size) for chart in _CHARTS]
    if all(learns_labels(run.record) for run in runs):
        charts[0] = replace(charts[0], unit="per label")
    candidates = [*charts, *_further_charts(runs)]
    return [chart for chart in candidates if any(chart.has_training(run) or chart.evaluated(run) for run in runs)]


def _further_charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """A chart for each logged figure that none of ours shows: task metrics, extra losses."""
    shown = {key for chart in _CHARTS for key in (chart.train_key, chart.eval_key)} | {"train/tokens"}
    keys = {key for run in runs for key, values in run.record.train.values.items() if not np.isnan(values).all()}
    keys |= {key for run in runs for line in run.record.evaluations for key in line.values}
    keys = {key for key in keys if not key.startswith("time/")}  # the section on time has them
    suffixes = {key.removeprefix("train/").removeprefix("eval/") for key in keys - shown}
    named = sorted(suffix for suffix in suffixes if suffix)[:_FURTHER_CHARTS]
    return [_further_chart(suffix, memory_unit(runs)) for suffix in named]


def _further_chart(suffix: str, memory: tuple[int, str]) -> Chart:
    """A chart of a figure that this version does not know, in the unit that its name carries."""
    title = title_of(suffix) if "/" not in suffix else heading(suffix.replace("/", ": "))
    if suffix.endswith("_bytes"):
        return Chart(title=title, unit=memory[1], suffix=suffix, scale=1 / memory[0], noisy=False)
    return Chart(title=title, unit="s" if suffix.endswith("_seconds") else "as logged", suffix=suffix)
