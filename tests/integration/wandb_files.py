"""Reads W&B's offline files: LevelDB-style records of protobuf messages in 32 KiB blocks after a 7-byte header."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
_HEADER = 7
_FULL, _LAST = 1, 4


def newest(run_directory: Path) -> Path:
    """The file of the newest offline directory of a run."""
    return max((run_directory / "wandb").glob("offline-run-*/*.wandb"))


def history(path: Path) -> list[dict[str, Any]]:
    """Rows logged to an offline run, keys as they were logged."""
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in _records(path, "history")
    ]


def axes(path: Path) -> dict[str, str]:
    """What each metric, or each pattern of names, is drawn over."""
    return {
        record.metric.name or record.metric.glob_name: record.metric.step_metric
        for record in _records(path, "metric")
        if record.metric.step_metric
    }


def config(path: Path) -> dict[str, Any]:
    """The configuration of an offline run."""
    updates = [record.run.config for record in _records(path, "run")]
    updates += [record.config for record in _records(path, "config")]
    return {item.key: json.loads(item.value_json) for update in updates for item in update.update}


def summary(path: Path) -> dict[str, Any]:
    """Summary values that were set by name."""
    return {
        (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
        for record in _records(path, "summary")
        for item in record.summary.update
    }


def identity(path: Path) -> Any:
    """The run record: tags, notes, job_type, run_group and so on."""
    return next(_records(path, "run")).run


def alerts(path: Path) -> list[tuple[str, str]]:
    """Title and text of each alert."""
    return [(record.alert.title, record.alert.text) for record in _records(path, "alert")]


def exit_code(path: Path) -> int | None:
    """How the run was marked when it ended; None where it did not end."""
    return next((record.exit.exit_code for record in _records(path, "exit")), None)


def table(path: Path, name: str) -> list[dict[str, Any]]:
    """Rows of the newest version of a table."""
    place = [row[f"{name}/path"] for row in history(path) if f"{name}/path" in row][-1]
    document = json.loads((path.parent / "files" / place).read_bytes())
    return [dict(zip(document["columns"], row, strict=True)) for row in document["data"]]


def _records(path: Path, kind: str) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for payload in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") == kind:
            yield record


def _payloads(data: bytes) -> Iterator[bytes]:
    position, parts = _HEADER, b""
    while position + _HEADER <= len(data):
        room = _BLOCK - position % _BLOCK
        if room < _HEADER:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        payload = data[position + _HEADER : position + _HEADER + length]
        if kind == 0 or len(payload) < length:
            return  # padding, or a tail torn off by a kill
        position += _HEADER + length
        parts += payload
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""
