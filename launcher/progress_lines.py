"""The sentences of the progress view: figures of a step, of an evaluation, and events."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from launcher.report.events import title, tone
from launcher.report.figure_names import name_of
from launcher.report.record import Event
from launcher.report.units import MISSING, plural, significant
from launcher.report.words import weights_words

_STYLES = {"tick": "dim", "calm": "", "good": "green", "warn": "yellow", "bad": "bold red"}
_TOLD_FIGURES = 4
_OUR_PACKAGES = ("llm", "data_pipeline", "cluster")


def position(message: Mapping[str, Any], seconds_left: float | None) -> str:
    """Where the training stands: `step 120/1,400  8.6 %  2:03 left`."""
    step, max_steps = message["step"], message["max_steps"]
    parts = [f"step {step:,}/{max_steps:,}", f"{100 * step / max_steps:.1f} %"]
    if seconds_left is not None and step < max_steps:
        parts.append(f"{_countdown(seconds_left)} left")
    return "  ".join(parts)


def figures(message: Mapping[str, Any], validation: Mapping[str, Mapping[str, Any]]) -> str:
    """Loss, perplexity, speed and busiest expert of a step, and the last validation figure of every dataset."""
    speed = message.get("speed/tokens_per_second")
    perplexity = [f"perplexity {significant(message['train/perplexity'])}"] if "train/perplexity" in message else []
    parts = [
        f"loss {_decimals(message.get('train/loss'), 4)}",
        *perplexity,
        f"{MISSING if speed is None else format(speed, ',.0f')} tokens/s",
    ]
    load = message.get("router/largest_load")
    parts += [] if load is None else [f"busiest expert {load:.2f}x"]
    for name, found in validation.items():
        label = "validation" if len(validation) == 1 else f"validation {name}"
        key, value = next(iter(_told(found).items()), ("loss", found.get("loss")))
        parts.append(f"{label} {'' if key == 'perplexity' else f'{name_of(key)} '}{significant(value)}")
    return "  ".join(parts)


def validation_line(name: str, found: Mapping[str, Any], of: str = "") -> str:
    """What an evaluation found of a dataset, by the names of its figures: a perplexity, or the figures of a task."""
    told = ", ".join(f"{name_of(key)}{of} {significant(value)}" for key, value in _told(found).items())
    return f"validation {told}  ({name})"


def _told(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that fit a line: the first ones."""
    return dict([(key, value) for key, value in found.items() if key != "loss"][:_TOLD_FIGURES])


def eval_line(message: Mapping[str, Any]) -> Text:
    """One line about an evaluation."""
    found = {key.removeprefix("eval/"): value for key, value in message.items() if key.startswith("eval/")}
    told = ", ".join(f"{name_of(key)} {significant(value)}" for key, value in _told(found).items())
    loss = _decimals(found.get("loss"), 4)
    return Text(f"step {message['step']:,}: validation {told} (loss {loss}, {message['name']})", style="cyan")


def event_line(message: Mapping[str, Any]) -> Text:
    """One line about something that happened to the run."""
    event = _event(message)
    where = f"step {event.step:,}: " if event.step is not None else ""
    return Text(where + _sentence(event), style=_STYLES[tone(event)])


def is_worth_showing(message: Mapping[str, Any]) -> bool:
    """Whether a log record is shown: our own news (how `auto` was resolved), other people's warnings."""
    ours = str(message["logger"]).split(".")[0] in _OUR_PACKAGES
    return int(message["level"]) >= (logging.INFO if ours else logging.WARNING)


def log_line(message: Mapping[str, Any]) -> Text:
    """A worker's log record."""
    level = int(message["level"])
    style = "red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else "dim"
    prefix = f"rank {message['rank']}: " if level >= logging.WARNING else ""
    return Text(f"{prefix}{message['text']}", style=style)


def _sentence(event: Event) -> str:
    reason = event.details.get("reason") or event.details.get("error")
    first_line = str(reason).strip().splitlines()[0] if reason else ""
    if event.name == "worker_lost":
        return _loss(event)
    if event.name in ("started", "resumed"):
        begin = "started" if event.name == "started" else "continuing from the checkpoint of this step"
        parent = event.details.get("branched_from")
        if isinstance(parent, dict):
            begin = f"branching off from {parent.get('name')} with the checkpoint of this step"
        weights = event.details.get("initialized_from")
        if isinstance(weights, dict):
            begin = f"{begin} with the {weights_words(weights)}"
        return ", ".join([begin, *_layout(event.details.get("layout"))])
    if event.name == "checkpoint_saved":
        return "checkpoint saved"
    return ": ".join(filter(None, [title(event), first_line or _plain_details(event)]))


_LOSSES = {
    "preemption": "a node was taken back",
    "lost_node": "a node was lost",
    "out_of_memory": "a worker ran out of memory",
    "hang": "a worker stood still",
    "error": "a worker failed",
}


def _loss(event: Event) -> str:
    """That workers were lost, and why; a checkpoint that was given up has had a line of its own."""
    causes = event.details.get("causes")
    what = _LOSSES.get(str(event.details.get("kind")), "a worker was lost")
    if not isinstance(causes, dict) or not causes:
        return what
    if any("CheckpointMismatchError" in str(cause).split(":")[0] for cause in causes.values()):
        return "starting the workers again, without the rejected checkpoint"
    rank, cause = next(iter(causes.items()))
    others = f" and {plural(len(causes) - 1, 'other')}" if len(causes) > 1 else ""
    return f"{what} (rank {rank}{others}: {str(cause).strip().splitlines()[0]})"


def _plain_details(event: Event) -> str:
    said = ("kind",) if event.name == "anomaly" else ()  # by its title
    plain = {
        key: value
        for key, value in event.details.items()
        if isinstance(value, int | float | str) and key not in said and not key.startswith("time/")  # goodput has these
    }
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in plain.items())


def _layout(layout: Any) -> list[str]:
    """The part of a layout that a person asks about first."""
    if not isinstance(layout, dict):
        return []
    stage = layout.get("zero_stage")
    parts = [plural(layout["world_size"], "worker")] if "world_size" in layout else []
    parts += [f"ZeRO {stage}"] if stage is not None else []
    return parts + [str(layout[key]) for key in ("precision", "device", "attention") if key in layout]


def _event(message: Mapping[str, Any]) -> Event:
    known = ("type", "event", "step", "time_unix_seconds", "attempt")
    return Event(
        name=message["event"],
        step=message.get("step"),
        time_unix_seconds=message.get("time_unix_seconds"),
        attempt=message.get("attempt"),
        details={key: value for key, value in message.items() if key not in known},
    )


def _decimals(value: float | None, decimals: int) -> str:
    return MISSING if value is None else f"{value:.{decimals}f}"


def _countdown(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
