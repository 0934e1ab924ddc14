"""The runs of one page, told apart: one of them, or several to compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from cluster.record.goodput import Goodput
from cluster.storage.operations import StoragePath
from launcher.report.axes import RunAxes
from launcher.report.record import RunRecord
from launcher.report.units import ByteUnit, byte_unit
from launcher.report.wall_time import run_goodput


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run as the page names and draws it."""

    record: RunRecord
    axes: RunAxes
    goodput: Goodput
    """Its wall time, divided."""
    label: str
    """Its name; with a directory where several runs of the page have that name."""
    place: int
    """Among the runs of the page, from 0; decides its colour."""


def reported_runs(records: Sequence[RunRecord]) -> list[ReportedRun]:
    """The runs in the order given."""
    labels = _labels(records)
    return [
        ReportedRun(record=record, axes=RunAxes(record), goodput=run_goodput(record), label=label, place=place)
        for place, (record, label) in enumerate(zip(records, labels, strict=True))
    ]


def memory_unit(runs: Sequence[ReportedRun]) -> ByteUnit:
    """The one unit of peak memory on the page."""
    columns = [run.record.train.column("memory/peak_bytes") for run in runs]
    return byte_unit(max((float(column[np.isfinite(column)].max(initial=0)) for column in columns), default=0))


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """Names; where runs share one, with the nearest directory above them that tells them apart."""
    counts = Counter(record.name for record in records)
    labels = []
    for record in records:
        name = record.name
        if counts[name] > 1:
            rivals = [other.directory for other in records if other.name == name]
            name = f"{name} ({_telling_part(record.directory, rivals)})"
        labels.append(name)
    return labels


def _telling_part(directory: StoragePath, rivals: Sequence[StoragePath]) -> str:
    """The last part of the directory that no rival has in its place, or all of it."""
    parts = [PurePath(str(path)).parts[::-1] for path in rivals]
    for place, part in enumerate(PurePath(str(directory)).parts[::-1]):
        if sum(other[place : place + 1] == (part,) for other in parts) == 1:
            return part
    return str(directory)
