"""Files that a person writes by hand, a line for each thing: read whole, every mistake with its place."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from launcher.errors import UsageError


def read_text(path: Path, named: str) -> str:
    """The content of a UTF-8 file.

    Args:
        path: The file.
        named: How the person named it, for messages.

    Raises:
        UsageError: It cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{named}: cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{named}: not UTF-8 text (byte {error.start}). Convert it first.") from error


def read_lines(path: Path, named: str, thing: str) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, without blank ones.

    Args:
        path: The file.
        named: How the person named it, for messages.
        thing: What a line holds, for messages.

    Raises:
        UsageError: It cannot be read, is no text, or has no line.
    """
    lines = [(number, line) for number, line in enumerate(read_text(path, named).split("\n"), start=1) if line.strip()]
    if not lines:
        raise UsageError(f"{named}: the file has no {thing}. Write one a line.")
    return lines


def parse_json(line: str, where: str, otherwise: str = "") -> Any:
    """What a line of a .jsonl file says.

    Args:
        line: The line.
        where: File and line, for messages.
        otherwise: What else may be done than to mend the line.

    Raises:
        UsageError: It is not JSON.
    """
    try:
        return json.loads(line)
    except ValueError as error:
        raise UsageError(
            f"{where} is not JSON ({error}), and every line of a .jsonl file is one object. Mend the line{otherwise}."
        ) from error


def refuse_unknown_keys(fields: dict[str, Any], where: str, thing: str, keys: Collection[str]) -> None:
    """Refuse what would be ignored.

    Raises:
        UsageError: A key is none of those that are read.
    """
    unknown = [key for key in fields if key not in keys]
    if unknown:
        *most, last = keys
        raise UsageError(
            f"{where} has the key {unknown[0]!r}, which would be ignored. Remove it: {thing} has "
            f"{', '.join(most)} and {last}."
        )


def require_text(text: str, where: str) -> None:
    """Refuse half of a UTF-16 pair, which JSON can spell and no encoder can write.

    Raises:
        UsageError: There is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: {text!r} has half a UTF-16 pair at character {error.start}, and is no text. Remove it."
        ) from error
