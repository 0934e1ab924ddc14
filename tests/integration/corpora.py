"""Small corpora to build from, and what a build has written."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.config import SourceConfig
from data_pipeline.publish import file_hashes


def json_lines(path: Path, texts: list[str]) -> SourceConfig:
    """A corpus of these documents."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return SourceConfig(name=path.stem, path=str(path))


def files_of(directory: Path) -> dict[str, str]:
    """The hash of every file below a directory, by its path in it."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): file_hashes(path).hash for path in found}
