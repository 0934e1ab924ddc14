"""Directories of this machine alone: for caches, and for what programs beside us write where a run has no directory."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

import xxhash

from cluster.storage.object_path import ObjectPath

_KEY_CHARACTERS = 16


def private_directory() -> Path:
    """A directory that is ours alone: what lies there may be loaded as code."""
    path = Path(tempfile.gettempdir()) / f"longhaul-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    facts = path.lstat()
    if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o022:
        return path
    return Path(tempfile.mkdtemp(prefix=path.name))


def scratch_directory(run_directory: ObjectPath) -> Path:
    """This machine's directory for a run whose own lies in an object store; the same for every process of the user."""
    key = xxhash.xxh3_128_hexdigest(str(run_directory).encode())[:_KEY_CHARACTERS]
    path = private_directory() / "runs" / f"{run_directory.name}-{key}"
    path.mkdir(parents=True, exist_ok=True)
    return path
