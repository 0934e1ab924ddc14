"""The run that the tests on real clusters disturb, and what it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wandb_files import history

from cluster.record.logs import deterministic_fields, read_lines
from cluster.storage.operations import StoragePath, storage_path

STEPS = 100
CHECKPOINT_EVERY = 10


def settings(storage: Path | str, dataset: Path) -> list[str]:
    """Configuration of the run."""
    return [
        "smoke",
        f"storage={storage}",
        f"data.dataset={dataset}",
        f"train.max_steps={STEPS}",
        "train.log_every_steps=1",
        f"checkpoint.every_steps={CHECKPOINT_EVERY}",
        "evaluation.every_steps=20",
        "wandb.mode=offline",
    ]


def pretrain(storage: Path | str, dataset: Path) -> list[str]:
    """The command that trains it."""
    return ["pretrain", *settings(storage, dataset)]


def metrics_of(storage: Path | str) -> StoragePath:
    """Its metrics.jsonl."""
    return storage_path(storage) / "smoke" / "metrics.jsonl"


def record_of(storage: Path | str) -> list[dict[str, Any]]:
    """Deterministic fields of every line."""
    return [deterministic_fields(row) for row in read_lines(metrics_of(storage))]


def event_rows(storage: Path | str) -> list[dict[str, Any]]:
    """Its events."""
    return list(read_lines(storage_path(storage) / "smoke" / "events.jsonl"))


def events_of(storage: Path | str) -> list[str]:
    """Names of its events."""
    return [row["event"] for row in event_rows(storage)]


def logged_steps(storage: Path | str) -> int:
    """Last step in the record."""
    return max((row["step"] for row in read_lines(metrics_of(storage))), default=0)


def assert_wandb_complete(storage: Path) -> None:
    """The newest offline directory alone holds loss and perplexity of every logged step."""
    newest = max((storage / "smoke" / "wandb").glob("offline-run-*/*.wandb"))
    rows = history(newest)
    logged = {row["train/step"]: row for row in rows if "train/loss" in row}
    for line in read_lines(metrics_of(storage)):
        if line["kind"] == "train":
            assert logged[line["step"]]["train/loss"] == line["train/loss"]
            assert logged[line["step"]]["train/perplexity"] == line["train/perplexity"]
