"""What may change between the attempts of a run, and what may not: pure functions over two configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any

from cluster.config import RunConfig
from cluster.errors import RunRefusedError
from llm.config import ScheduleConfig
from llm.schedule import decay_start

FREE = (
    "storage",
    "name",
    "depth",
    "resources",
    "faults",
    "zero",
    "checkpoint",
    "evaluation",
    "wandb",
    "train.micro_batch_size",
    "train.log_every_steps",
    "train.deterministic",
    "train.activation_checkpointing",
)
"""Changed at will: the result does not depend on them beyond the Resume law's tolerance, on `depth` by the numbers that
follow from it only."""

LOGGED = (
    "train.precision",
    "train.compile",
    "model.attention",
    "model.experts",
    "train.max_steps",
    "healing.non_finite",
    "healing.loss_spike",
    "healing.spike_score",
    "healing.spike_window_steps",
    "healing.rollback_batches",
    "healing.max_rollbacks",
)
"""Changed with an event; `train.max_steps` only while the learning rate does not depend on it."""

DERIVED_BY_DEPTH = ("optimizer.learning_rate", "train.global_batch_size")
"""What `depth` derives of other fields too, so that it changes with them unless it is stated."""

BY_FINGERPRINT = "data"
"""Compared by the data plan's fingerprint, so that a dataset may move."""


@dataclass(frozen=True)
class Change:
    """A key whose value is not what it was."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} -> {self.after!r}"


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[Change]:
    """Leaf keys that differ between two nested mappings, in key order."""
    found: list[Change] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(Change(f"{prefix}{key}", old, new))
    return found


def check_resume(before: Mapping[str, Any], after: Mapping[str, Any], *, step: int, run: str) -> list[Change]:
    """Compare a run's configuration with that of a new attempt.

    Args:
        before: Configuration in the checkpoint, as plain values; keys that a later version added may be absent.
        after: Configuration asked for now.
        step: Step that training would continue from.
        run: Name of the run, for messages.

    Returns:
        The changes that are allowed and logged.

    Raises:
        RunRefusedError: Something changed that the curve depends on.
    """
    before = completed(before)
    refused, logged = [], []
    for change in changes(before, after):
        if _under(change.key, FREE) or _under(change.key, (BY_FINGERPRINT,)):
            continue
        if not _under(change.key, LOGGED):
            refused.append(f"{change}{_hint(change, after)}")
        elif change.key == "train.max_steps" and not _rate_unaffected(before, after, step):
            refused.append(f"{change} (the {after['schedule']['name']} schedule has begun to depend on it)")
        else:
            logged.append(change)
    if refused:
        raise _refusal(run, step, refused)
    return logged


def not_applied(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What a run that has finished was asked for in vain; its place and that of its data are no part of it.

    Args:
        before: Configuration in its last checkpoint, as plain values.
        after: Configuration asked for now, which `check_resume` allows.
    """
    places = ("storage", "name", BY_FINGERPRINT)
    return [change for change in changes(completed(before), after) if not _under(change.key, places)]


def completed(document: Mapping[str, Any], kind: type = RunConfig) -> dict[str, Any]:
    """A configuration with the keys that its writer did not know yet, each at its default.

    So a checkpoint stays loadable when a version adds a key. It follows that the default of a new key must do what
    was done before there was the key.

    Args:
        document: Plain values of a configuration, as an older version wrote it.
        kind: Dataclass of that part of the configuration.
    """
    whole = dict(document)
    for known in fields(kind):
        default = known.default if known.default_factory is MISSING else known.default_factory()
        section = is_dataclass(default) and not isinstance(default, type)
        value = document.get(known.name)
        if section and isinstance(value, Mapping):
            whole[known.name] = completed(value, type(default))
        elif known.name not in document and default is not MISSING:
            whole[known.name] = json.loads(json.dumps(asdict(default) if section else default))
    return whole


def check_plan(before: Mapping[str, Any], after: Mapping[str, Any], *, step: int, run: str) -> None:
    """Refuse a data plan that would give other batches.

    Args:
        before: `DataPlan.describe()` from the checkpoint.
        after: That of the datasets and configuration at hand.
        step: Step that training would continue from.
        run: Name of the run, for messages.
    """
    found = changes(before, after)
    if found:
        raise _refusal(run, step, [f"data plan {change}" for change in found])


def _refusal(run: str, step: int, refused: list[str]) -> RunRefusedError:
    listing = "\n  ".join(refused)
    return RunRefusedError(
        f"run {run} stands at step {step}, and what its curve depends on was changed:\n  {listing}\n"
        "A run goes on with the configuration it began with. Undo the change, give the run another name, begin a run "
        f"with its state (`longhaul branch RUN --from {step} NAME`, which says what it can take over), or pass --fresh "
        "to set the old run aside and begin anew."
    )


def _hint(change: Change, after: Mapping[str, Any]) -> str:
    """How to keep what nobody changed by name: with `depth` it follows from other fields, such as the steps."""
    if after["depth"] is None or change.key not in DERIVED_BY_DEPTH:
        return ""
    return f" (depth derives what is not stated: {change.key}={change.before} keeps it)"


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _rate_unaffected(before: Mapping[str, Any], after: Mapping[str, Any], step: int) -> bool:
    """Whether the rate of every step made so far is the same under both lengths."""
    if before["schedule"] != after["schedule"]:
        return False
    schedule = ScheduleConfig(**after["schedule"])
    return all(step <= decay_start(schedule, max_steps=document["train"]["max_steps"]) for document in (before, after))
