"""What a reader wants to know first: where the run stands, and its eight figures."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.record.goodput import Goodput
from launcher.report.figure_names import name_of
from launcher.report.json_facts import finite
from launcher.report.metrics import Evaluation
from launcher.report.record import RunRecord
from launcher.report.runs import ReportedRun
from launcher.report.units import (
    MISSING,
    ByteUnit,
    byte_size,
    duration,
    percentage,
    plural,
    short_count,
    significant,
)
from llm.metrics.measured import Selection

FORMULAS = (
    "Perplexity is exp(loss), loss the mean cross entropy over target tokens in nats. "
    "Goodput is the seconds of training steps that stayed, over wall time; wall time runs from the creation of the run "
    "to its last record, without pauses after it was stopped or had finished. "
    "Tokens/s and MFU in the headline are medians over logged steps; n/a is a figure that the run lacks. "
    "Smoothing is an exponential mean over steps with the time constant shown, of logarithms for perplexity."
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One figure of the headline."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    amount: float | None = None
    """What runs are ranked by, lowest first, where ranking them makes sense."""


def headline(run: ReportedRun, memory: ByteUnit) -> list[Card]:
    """The cards in reading order; every run has the same ones.

    Args:
        run: The run.
        memory: The unit of peak memory.
    """
    record = run.record
    return [
        _training(record),
        _validation(record),
        _tokens(record),
        _speed(record),
        _wall_time(run.goodput),
        _attempts(record),
        _checkpoints(record),
        _memory(record, memory),
    ]


def perplexity(evaluation: Evaluation) -> float | None:
    """The perplexity of an eval line, from its loss where only that was logged; None where not finite, or of labels."""
    found = finite(evaluation.values.get("eval/perplexity"))
    if found is not None or "eval/perplexity" in evaluation.values:
        return found
    if any(key.startswith("eval/") and key != "eval/loss" for key in evaluation.values):
        return None
    loss = finite(evaluation.values.get("eval/loss"))
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return None


def best_evaluation(evaluations: list[Evaluation], name: str, chosen: Selection | None = None) -> Evaluation | None:
    """The line of one dataset with the lowest perplexity, or the best chosen figure, the earliest of equals."""
    lines = [line for line in evaluations if line.name == name]
    if chosen is None:
        scored = [(score, line) for line in lines if (score := perplexity(line)) is not None]
    else:
        sign, key = (-1 if chosen.larger_is_better else 1), f"eval/{chosen.name}"
        scored = [(sign * value, line) for line in lines if (value := finite(line.values.get(key))) is not None]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def learns_labels(record: RunRecord) -> bool:
    """Whether a run learns labels, not text."""
    return isinstance(record.facts.get("labels"), dict)


def chosen_figure(record: RunRecord) -> Selection | None:
    """The figure that the checkpoints of a run that learns labels are chosen by, as far as it was measured."""
    return next((named.measured.selection for named in record.measures), None)


def baseline(record: RunRecord) -> tuple[str, float] | None:
    """Name and perplexity of the simple model that run.json states, if it does."""
    found = record.facts.get("baseline")
    if not isinstance(found, dict) or (value := finite(found.get("perplexity"))) is None or value <= 0:
        return None
    return str(found.get("name", "baseline")), value


def _last(values: NDArray[np.float64]) -> float | None:
    """The last logged value; infinity where it was not finite."""
    present = values[~np.isnan(values)]
    return float(present[-1]) if len(present) else None


def _median(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _training(record: RunRecord) -> Card:
    loss = _last(record.train.column("train/loss"))
    if loss is None:
        return Card(label="Training loss", value=MISSING, note="no step logged yet")
    step = f"at step {int(record.train.step[-1]):,}"
    if math.isinf(loss):
        return Card(label="Training loss", value="not finite", note=step)
    if learns_labels(record):
        return Card(label="Training loss", value=significant(loss), unit="per label", note=step)
    shown = _last(record.train.column("train/perplexity"))
    note = f"perplexity {significant(shown if shown is not None else math.exp(min(loss, 700)))} {step}"
    return Card(label="Training loss", value=significant(loss), unit="nats/token", note=note)


def counts_answers_only(record: RunRecord) -> bool:
    """Whether the losses of a run are over the answers of conversations, and nothing else."""
    plan = record.facts.get("data_plan")
    return isinstance(plan, dict) and plan.get("answers_only") is True


def _validation(record: RunRecord) -> Card:
    names = list(dict.fromkeys(line.name for line in record.evaluations))
    if learns_labels(record):
        return _chosen(record, names)
    best = best_evaluation(record.evaluations, names[0]) if names else None
    reached = None if best is None else perplexity(best)
    label = "Best validation perplexity"
    simple = baseline(record)
    if best is None or reached is None:
        return Card(label=label, value=MISSING, note="not evaluated yet" if not names else "never finite")
    note = f"{best.name}, step {best.step:,}"
    if len(names) > 1:
        note += f" (and {plural(len(names) - 1, 'more set')})"
    if simple is not None:
        name, level = simple
        side = "below" if reached < level else "above"
        note += f"; {percentage(abs(1 - reached / level))} {side} {name} ({significant(level)})"
    unit = "per token of answers" if counts_answers_only(record) else "per token"
    return Card(label=label, value=significant(reached), unit=unit, note=note, amount=reached)


def _chosen(record: RunRecord, names: list[str]) -> Card:
    chosen = chosen_figure(record)
    if chosen is None or not names:
        return Card(label="Best validation figure", value=MISSING, note="not evaluated yet")
    label = f"Best validation {name_of(chosen.name)}"
    best = best_evaluation(record.evaluations, names[0], chosen)
    if best is None:
        return Card(label=label, value=MISSING, note="never defined")
    note = f"{best.name}, step {best.step:,}"
    if len(names) > 1:
        note += f" (and {plural(len(names) - 1, 'more set')})"
    return Card(label=label, value=significant(best.values[f"eval/{chosen.name}"]), note=note)


def _tokens(record: RunRecord) -> Card:
    tokens = _last(record.train.column("train/tokens"))
    steps = int(record.train.step[-1]) if len(record.train) else 0
    # The resolved config names this field once; reading one integer needs no YAML.
    planned = re.search(r"\bmax_steps:\s*(\d+)", record.config_yaml)
    note = f"{steps:,} of {int(planned[1]):,} steps" if planned else plural(steps, "step")
    return Card(label="Tokens trained", value=short_count(tokens), unit="tokens" if tokens else "", note=note)


def _speed(record: RunRecord) -> Card:
    speed = _median(record.train.column("speed/tokens_per_second"))
    mfu = percentage(_median(record.train.column("speed/mfu")))
    unit = "" if speed is None else "tokens/s"
    return Card(label="Speed", value=short_count(speed), unit=unit, note=f"median; MFU {mfu}")


def _wall_time(goodput: Goodput) -> Card:
    if goodput.wall_seconds <= 0:
        return Card(label="Wall time", value=MISSING)
    notes = [f"goodput {percentage(goodput.fraction)}"] if goodput.fraction is not None else []
    notes += [f"paused for {duration(goodput.paused_seconds)}"] if goodput.paused_seconds else []
    return Card(label="Wall time", value=duration(goodput.wall_seconds), note=", ".join(notes))


def _attempts(record: RunRecord) -> Card:
    numbers = {event.attempt for event in record.events if event.attempt is not None}
    numbers |= set(np.unique(record.train.attempt[np.isfinite(record.train.attempt)]).astype(int).tolist())
    counts = Counter(event.name for event in record.events)
    named = (
        ("resumed", "resume"),
        ("worker_lost", "lost worker"),
        ("driver_lost", "lost driver"),
        ("preempted", "preemption"),
        ("rolled_back", "rollback"),
    )
    told = [plural(counts[event], words) for event, words in named if counts[event]]
    return Card(
        label="Attempts",
        value=str(len(numbers)) if numbers else MISSING,
        note=", ".join(told) or ("undisturbed" if numbers else ""),
    )


def _checkpoints(record: RunRecord) -> Card:
    counts = Counter(event.name for event in record.events)
    steps = [checkpoint.step for checkpoint in record.checkpoints if checkpoint.step is not None]
    notes = [f"newest at step {max(steps):,}"] if steps else []
    if counts["checkpoint_saved"]:
        notes.append(f"{counts['checkpoint_saved']:,} saved in all")
    if counts["checkpoint_rejected"]:
        notes.append(f"{counts['checkpoint_rejected']:,} rejected")
    return Card(label="Checkpoints kept", value=f"{len(record.checkpoints):,}", note=", ".join(notes))


def _memory(record: RunRecord, unit: ByteUnit) -> Card:
    values = record.train.column("memory/peak_bytes")
    known = values[np.isfinite(values)]
    value, _, name = byte_size(float(known.max()) if len(known) else None, unit).partition(" ")
    return Card(label="Peak memory", value=value, unit=name)
