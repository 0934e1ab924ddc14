"""What a run left on disk, read whole and tolerantly: a report matters most where a run is broken.

Whatever cannot be read is left out and named in `RunRecord.complaints`; a missing file is only absence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cluster.storage.operations import StoragePath, list_names
from launcher.report.json_facts import Facts, finite, read_lines, read_object, read_text, whole
from launcher.report.metrics import Evaluation, TrainLog, read_metrics
from llm.errors import MetricsError
from llm.metrics import Measured, from_json


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of events.jsonl."""

    name: str
    step: int | None
    time_unix_seconds: float | None
    attempt: int | None
    details: Facts


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One published checkpoint."""

    directory: str
    """Its name under checkpoints/."""
    step: int | None
    size_bytes: int | None
    files: int | None
    manifest: Facts


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Text that the model wrote in the course of training."""

    step: int | None
    name: str
    """Of the prompt, the same through training; empty where the writer gave none."""
    prompt: str
    """Empty where the model began a document."""
    text: str
    """What came after the prompt."""


@dataclass(frozen=True, kw_only=True)
class NamedMeasures:
    """One file under measures/."""

    name: str
    """Of the file, without its suffix."""
    measured: Measured


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything the run directory says."""

    directory: StoragePath
    """Where it was read from, from the root."""
    name: str
    facts: Facts
    """run.json."""
    config_yaml: str
    train: TrainLog
    evaluations: list[Evaluation]
    """Ordered by step; (name, step) is unique."""
    events: list[Event]
    """In the order written."""
    checkpoints: list[Checkpoint]
    """Ordered by step."""
    samples: list[Sample]
    """Ordered by step; those of one step in the order written."""
    measures: list[NamedMeasures] = field(default_factory=list)
    """Ordered by name."""
    discarded: list[Facts] = field(default_factory=list)
    """Train lines of steps that a death or a rollback undid, in the order written."""
    complaints: list[str] = field(default_factory=list)
    """What could not be read, for the reader of the report."""


def read_record(run_directory: StoragePath) -> RunRecord:
    """Read a run directory.

    Args:
        run_directory: STORAGE/NAME of the run; any of its files may be missing.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    if not run_directory.is_dir():
        raise FileNotFoundError(
            f"{run_directory} is not a run directory: no directory has that path. "
            "Name the directory that holds the run's metrics.jsonl, which is storage/name of its config."
        )
    complaints: list[str] = []
    directory = run_directory.resolve() if isinstance(run_directory, Path) else run_directory
    facts = read_object(run_directory / "run.json", complaints)
    train, evaluations = read_metrics(run_directory / "metrics.jsonl", complaints)
    name = facts.get("name")
    return RunRecord(
        directory=directory,
        name=name if isinstance(name, str) and name else directory.name,
        facts=facts,
        config_yaml=read_text(run_directory / "config.yaml"),
        train=train,
        evaluations=evaluations,
        events=[_event(line) for line in read_lines(run_directory / "events.jsonl", complaints)],
        checkpoints=_read_checkpoints(run_directory / "checkpoints", complaints),
        samples=_samples(read_lines(run_directory / "samples.jsonl", complaints)),
        measures=_read_measures(run_directory / "measures", complaints),
        discarded=[
            line for line in read_lines(run_directory / "discarded.jsonl", complaints) if line.get("kind") == "train"
        ],
        complaints=complaints,
    )


def _event(line: Facts) -> Event:
    known = ("event", "step", "time_unix_seconds", "attempt")
    return Event(
        name=str(line.get("event", "unnamed")),
        step=whole(line.get("step")),
        time_unix_seconds=finite(line.get("time_unix_seconds")),
        attempt=whole(line.get("attempt")),
        details={key: value for key, value in line.items() if key not in known},
    )


def _samples(lines: list[Facts]) -> list[Sample]:
    """Ordered by step. Where a sample was written twice, because a step was repeated, the last line stands."""
    found: dict[tuple[int | None, str, str], Sample] = {}
    for line in lines:
        step, name, prompt = whole(line.get("step")), str(line.get("name") or ""), str(line.get("prompt") or "")
        text = str(line.get("text") or "").removeprefix(prompt)
        found[step, name, prompt] = Sample(step=step, name=name, prompt=prompt, text=text)
    return sorted(found.values(), key=lambda sample: -1 if sample.step is None else sample.step)


def _read_measures(directory: StoragePath, complaints: list[str]) -> list[NamedMeasures]:
    found = []
    names = list_names(directory) if directory.is_dir() else []
    for name in (name for name in names if name.endswith(".json")):
        facts = read_object(directory / name, complaints)
        if not facts:
            continue
        try:
            found.append(NamedMeasures(name=name.removesuffix(".json"), measured=from_json(facts, f"measures/{name}")))
        except MetricsError as error:
            complaints.append(str(error))
    return found


def _read_checkpoints(directory: StoragePath, complaints: list[str]) -> list[Checkpoint]:
    """The published ones only: a checkpoint without a manifest does not exist."""
    found = []
    names = list_names(directory) if directory.is_dir() else []
    for path in (directory / name / "MANIFEST.json" for name in names):
        if not path.is_file():
            continue
        manifest = read_object(path, complaints)
        files = _manifest_files(manifest.get("files"))
        sizes = [_file_size(entry) for entry in files] if files is not None else []
        known = [size for size in sizes if size is not None]
        found.append(
            Checkpoint(
                directory=path.parent.name,
                step=whole(manifest.get("step")),
                size_bytes=sum(known) if known and len(known) == len(sizes) else None,
                files=None if files is None else len(files),
                manifest=manifest,
            )
        )
    return sorted(found, key=lambda checkpoint: (checkpoint.step is None, checkpoint.step or 0, checkpoint.directory))


def _manifest_files(files: object) -> list[object] | None:
    if isinstance(files, dict):
        return list(files.values())
    return files if isinstance(files, list) else None


def _file_size(entry: object) -> int | None:
    if isinstance(entry, dict):
        return next(
            (size for key in ("size_bytes", "bytes", "size") if (size := whole(entry.get(key))) is not None),
            None,
        )
    return whole(entry)
