"""JSON as a run leaves it on disk, read tolerantly: what cannot be read is left out and complained of."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, TextIO

from cluster.record.logs import has_log, read_raw
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath

Facts = dict[str, Any]
_LINES_PER_CHUNK = 20_000  # bounds the parsed lines in memory to some 100 MB
# A literal NaN is no JSON; a writer that let one slip meant a number that was not finite.
_DECODER = json.JSONDecoder(parse_constant=lambda _: math.inf)


def number(value: object) -> float | None:
    """A JSON number as a float (infinity for NaN and what a float cannot hold), or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else math.inf
    except OverflowError:
        return math.inf


def finite(value: object) -> float | None:
    """A finite JSON number, or None."""
    found = number(value)
    return None if found is None or math.isinf(found) else found


def whole(value: object) -> int | None:
    """A finite JSON number as an int, or None."""
    found = finite(value)
    return None if found is None else int(found)


def read_text(path: StoragePath) -> str:
    """The text of a file; empty where there is none."""
    return path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""


def read_object(path: StoragePath, complaints: list[str]) -> Facts:
    """The object in a JSON file; empty where the file is missing or something else."""
    if not path.is_file():
        return {}
    found = _parse_object(read_text(path))
    if found is None:
        complaints.append(f"{path.parent.name}/{path.name} is not a JSON object; what it says is missing here.")
        return {}
    return found


def read_lines(path: StoragePath, complaints: list[str]) -> list[Facts]:
    """The objects of a JSON-lines file."""
    return [line for chunk in read_chunks(path, complaints) for line in chunk]


def read_chunks(path: StoragePath, complaints: list[str]) -> Iterator[list[Facts]]:
    """The objects of a long JSON-lines file, some thousands at a time."""
    if not has_log(path):
        return
    unreadable: list[int] = []
    before = 0
    with _opened(path) as stream:
        while lines := list(islice(stream, _LINES_PER_CHUNK)):
            found = _parse_together(lines)
            if found is None:
                found = []
                for place, line in enumerate(lines, start=before + 1):
                    parsed = _parse_object(line)
                    if parsed is not None:
                        found.append(parsed)
                    elif line.strip():
                        unreadable.append(place)
            before += len(lines)
            yield found
    if unreadable == [before]:
        # The one damage that is normal: a writer was killed.
        complaints.append(f"The last line of {path.name} is torn, as a killed writer leaves it; it is left out.")
    elif unreadable:
        complaints.append(
            f"{path.name}: {len(unreadable):,} lines are not JSON objects and are left out, "
            f"the first is line {unreadable[0]:,}."
        )


def _opened(path: StoragePath) -> TextIO:
    if isinstance(path, ObjectPath):
        return io.StringIO(read_raw(path).decode("utf-8", errors="replace"))
    return path.open(encoding="utf-8", errors="replace")


def _parse_together(lines: list[str]) -> list[Facts] | None:
    """Many lines in one call of the decoder, twice as fast as one by one; None where any line is damaged."""
    try:
        values = _DECODER.decode(f"[{','.join(lines)}]")
    except (ValueError, RecursionError):
        return None
    # Two halves of a torn object can make a whole, but then the count is wrong.
    sound = len(values) == len(lines) and all(isinstance(value, dict) for value in values)
    return values if sound else None


def _parse_object(text: str) -> Facts | None:
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
