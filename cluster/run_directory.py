"""A run's directory: its identity and its configuration."""

from __future__ import annotations

import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.errors import StorageError
from data_pipeline.publish import write_atomically

RUN_NAME = "run.json"
CONFIG_NAME = "config.yaml"
TOKENIZER_NAME = "tokenizer.model"
PUBLISHED_STEP = "published_step"
"""Key in run.json: the step of the last checkpoint that was published."""
_UPDATING = threading.Lock()
"""The training thread and the checkpoint thread of rank 0 both update run.json."""


class RunDirectory:
    """The files of one run that say what it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / RUN_NAME).exists()

    def facts(self) -> dict[str, Any]:
        """Content of run.json.

        Raises:
            StorageError: It is not JSON.
        """
        try:
            facts: dict[str, Any] = json.loads((self.path / RUN_NAME).read_bytes())
        except ValueError as error:
            raise StorageError(
                f"{self.path / RUN_NAME} is not JSON ({error}): it was edited or damaged. Restore it from a copy, or "
                "begin anew with --fresh."
            ) from error
        return facts

    def update(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Merge facts into run.json, as a whole or not at all."""
        with _UPDATING:
            merged = {**(self.facts() if self.exists() else {}), **facts}
            write_atomically(self.path / RUN_NAME, json.dumps(merged, indent=1, ensure_ascii=False).encode() + b"\n")
        return merged

    def create(self, config: RunConfig, resolved_yaml: str) -> None:
        """Begin a run here, if none was begun: identity first, so that every later attempt carries it."""
        if not self.exists():
            self.update(
                {
                    "schema_version": 1,
                    "name": config.name,
                    "task": config.task,
                    "id": secrets.token_hex(4),
                    "created_unix_seconds": time.time(),
                    "attempt": 0,
                    "wandb": {"id": secrets.token_hex(4), "project": config.wandb.project},
                }
            )
        write_atomically(self.path / CONFIG_NAME, resolved_yaml.encode())

    def next_attempt(self) -> int:
        """Number the attempt that begins now; kept in run.json, so that numbers only rise."""
        return int(self.update({"attempt": int(self.facts()["attempt"]) + 1})["attempt"])


def prepare_storage(path: Path) -> None:
    """Create the directory and prove that it can be written.

    Raises:
        StorageError: It cannot.
    """
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(probe, b"written and read back")
        probe.read_bytes()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Make room there" if full else "Give a directory that you may write"
        raise StorageError(
            f"storage {path} cannot be written: {error.strerror or error}. {remedy}, or set `storage` to another one."
        ) from error
    finally:
        if probe.parent.is_dir():
            probe.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Move a run out of the way, keeping all it holds; for `--fresh`.

    Returns:
        Where it is now.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    target = path.with_name(f"{path.name}.before-{stamp}-{secrets.token_hex(2)}")
    path.rename(target)
    return target


def config_as_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
