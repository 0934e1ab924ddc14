"""A run's directory: its identity and its configuration."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cluster.config import RunConfig
from cluster.errors import StorageError
from cluster.storage.check import account_of, prepare_storage
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, list_names, remove_tree, replace, write_atomically
from cluster.storage.retry import retried
from cluster.storage.transfer import move_tree

if TYPE_CHECKING:
    from data_pipeline.tokenizer import Tokenizer

RUN_NAME = "run.json"
CONFIG_NAME = "config.yaml"
TOKENIZER_NAME = "tokenizer.model"
PUBLISHED_STEP = "published_step"
"""Key in run.json: the step of the last checkpoint that was published."""
_SETTING_ASIDE = ".setting-aside"
"""Holds where a run is being moved to, in an object store."""
_STAYING = ("lease", _SETTING_ASIDE)
_UPDATING = threading.Lock()
"""The training thread and the checkpoint thread of rank 0 both update run.json."""


class RunDirectory:
    """The files of one run that say what it is."""

    def __init__(self, path: StoragePath) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / RUN_NAME).exists()

    def facts(self) -> dict[str, Any]:
        """Content of run.json.

        Raises:
            StorageError: It is not JSON.
        """
        return self._parsed((self.path / RUN_NAME).read_bytes())

    def update(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Merge facts into run.json, as a whole or not at all."""
        return self._change(lambda old: {**old, **facts})

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Replace the facts by what a function makes of them, which an object store may call again."""

        def changed(content: bytes | None) -> bytes:
            facts = change({} if content is None else self._parsed(content))
            return json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n"

        with _UPDATING:
            return self._parsed(replace(self.path / RUN_NAME, changed))

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise StorageError(
                f"{self.path / RUN_NAME} is not JSON ({error}): it was edited or damaged. Restore it from a copy, or "
                "begin anew with --fresh."
            ) from error
        return facts

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
        return int(self._change(lambda old: {**old, "attempt": int(old["attempt"]) + 1})["attempt"])


def read_tokenizer(path: StoragePath) -> Tokenizer:
    """Load the tokenizer that lies in a run.

    Raises:
        TokenizerError: It is missing, or not a usable model.
    """
    from data_pipeline.errors import TokenizerError
    from data_pipeline.tokenizer import Tokenizer

    if not isinstance(path, ObjectPath):
        return Tokenizer.load(path)
    try:
        return Tokenizer.from_bytes(retried(path.read_bytes, f"reading {path}"), str(path))
    except OSError as error:
        raise TokenizerError(f"the run's tokenizer {path} cannot be read: {account_of(path, error)}.") from error


def set_aside(path: StoragePath) -> StoragePath:
    """Move a run out of the way, keeping all it holds; for `--fresh`.

    A directory goes with one rename, its leases with it. In an object store the run is copied and then removed, object
    by object, while its lease stays where it is; a mark leads whoever comes after a kill to where it was.

    Returns:
        Where it is now.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    target = path.with_name(f"{path.name}.before-{stamp}-{secrets.token_hex(2)}")
    if not isinstance(path, ObjectPath):
        move_tree(path, target, last=RUN_NAME)
        return target
    write_atomically(path / _SETTING_ASIDE, str(target).encode())
    move_tree(path, target, last=RUN_NAME, staying=_STAYING)
    (path / _SETTING_ASIDE).unlink(missing_ok=True)
    return target


def is_half_set_aside(path: StoragePath) -> bool:
    """Whether what lies there is the rest of a run that was set aside and is whole elsewhere."""
    there = isinstance(path, ObjectPath) and (path / _SETTING_ASIDE).is_file()
    return there and not RunDirectory(path).exists()


def end_setting_aside(path: StoragePath) -> None:
    """Bring what a kill interrupted to an end: remove the rest of the run here, or its unfinished copy there.

    Called by the run's holder.
    """
    if not isinstance(path, ObjectPath) or not (path / _SETTING_ASIDE).is_file():
        return
    if RunDirectory(path).exists():
        copy = ObjectPath((path / _SETTING_ASIDE).read_text())
        if copy.parent == path.parent and copy.name.startswith(f"{path.name}.before-"):
            remove_tree(copy)
    else:
        for name in list_names(path):
            if name not in _STAYING:
                remove_tree(path / name)
                (path / name).unlink(missing_ok=True)
    (path / _SETTING_ASIDE).unlink(missing_ok=True)


def config_as_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


__all__ = [
    "CONFIG_NAME",
    "PUBLISHED_STEP",
    "RUN_NAME",
    "TOKENIZER_NAME",
    "RunDirectory",
    "config_as_dict",
    "end_setting_aside",
    "is_half_set_aside",
    "prepare_storage",
    "read_tokenizer",
    "set_aside",
]
