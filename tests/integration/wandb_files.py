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


def history(path: Path) -> list[dict[str, Any]]:
    """Rows logged to an offline run, keys as they were logged."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for payload in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            )
    return rows


def _records(data: bytes) -> Iterator[bytes]:
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
