"""A run's directory: its identity and its configuration."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
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
_CHANGE_TOKEN = "change_token"
"""Key in run.json: new with each change, so that no two processes ever write the same content. An object store tells a
writer whose answer was lost that another content is there, and only its own content proves to it that it was first."""
_UPDATING = threading.Lock()
"""The training thread and the checkpoint thread of rank 0 both update run.json."""


class _LaterAttemptError(Exception):
    """A change is not to be made, because another attempt has begun."""


class RunDirectory:
    """The files of one run that say what it is.

    What the storage refuses for a moment is tried again, as with checkpoints: a run can be restarted while it does.
    """

    def __init__(self, path: StoragePath) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether a run was begun here."""
        path = self.path / RUN_NAME
        return retried(path.exists, f"looking for {path}")

    def facts(self, *, patient: bool = True) -> dict[str, Any]:
        """Content of run.json.

        Args:
            patient: Whether errors that may pass are waited out; a caller who tries again by itself does not want it.

        Raises:
            StorageError: It is not JSON.
            OSError: It cannot be read.
        """
        path = self.path / RUN_NAME
        return self._parsed(retried(path.read_bytes, f"reading {path}") if patient else path.read_bytes())

    def update(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Merge facts into run.json, as a whole or not at all."""
        return self._change(lambda old: {**old, **facts})

    def update_within(self, attempt: int, facts: Mapping[str, Any]) -> bool:
        """Merge what an attempt found into run.json.

        Returns:
            False where another attempt has begun since then, and nothing was changed.
        """

        def merged(old: dict[str, Any]) -> dict[str, Any]:
            if old.get("attempt") != attempt:
                raise _LaterAttemptError
            return {**old, **facts}

        try:
            self._change(merged)
        except _LaterAttemptError:
            return False
        return True

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Replace the facts by what a function makes of them, which an object store may call again."""

        def changed(content: bytes | None) -> bytes:
            facts = change({} if content is None else self._parsed(content))
            facts = {**facts, _CHANGE_TOKEN: secrets.token_hex(8)}
            return json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n"

        path = self.path / RUN_NAME

        def replaced() -> bytes:
            with _UPDATING:
                return replace(path, changed)

        return self._parsed(retried(replaced, f"writing {path}"))

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
        path = self.path / CONFIG_NAME
        retried(partial(write_atomically, path, resolved_yaml.encode()), f"writing {path}")

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


def set_aside(path: StoragePath, still_ours: Callable[[], None] = lambda: None) -> StoragePath:
    """Move a run out of the way, keeping all it holds; for `--fresh`.

    A directory goes with one rename, its leases with it. In an object store the run is copied and then removed, object
    by object, while its lease stays where it is; a mark leads whoever comes after a kill to where it was.

    Args:
        path: The run.
        still_ours: Called before anything is moved or removed, which copying may have delayed for long; its error ends
            it, as whoever holds the run by now has brought this to an end and goes on there.

    Returns:
        Where it is now.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    target = path.with_name(f"{path.name}.before-{stamp}-{secrets.token_hex(2)}")
    if not isinstance(path, ObjectPath):
        still_ours()
        move_tree(path, target, last=RUN_NAME)
        return target
    write_atomically(path / _SETTING_ASIDE, str(target).encode())
    move_tree(path, target, last=RUN_NAME, staying=_STAYING, still_ours=still_ours)
    still_ours()
    (path / _SETTING_ASIDE).unlink(missing_ok=True)
    return target


def is_half_set_aside(path: StoragePath) -> bool:
    """Whether what lies there is the rest of a run that was set aside and is whole elsewhere."""
    return _is_being_set_aside(path) and not RunDirectory(path).exists()


def _is_being_set_aside(path: StoragePath) -> bool:
    mark = path / _SETTING_ASIDE
    return isinstance(mark, ObjectPath) and retried(mark.is_file, f"looking for {mark}")


def end_setting_aside(path: StoragePath, still_ours: Callable[[], None] = lambda: None) -> None:
    """Bring what a kill interrupted to an end: remove the rest of the run here, or its unfinished copy there.

    Called by the run's holder.

    Args:
        path: The run.
        still_ours: Called before each removal; its error ends it.
    """
    if not isinstance(path, ObjectPath) or not _is_being_set_aside(path):
        return
    if RunDirectory(path).exists():
        copy = ObjectPath((path / _SETTING_ASIDE).read_text())
        if copy.parent == path.parent and copy.name.startswith(f"{path.name}.before-"):
            still_ours()
            remove_tree(copy)
    else:
        for name in list_names(path):
            if name not in _STAYING:
                still_ours()
                remove_tree(path / name)
                (path / name).unlink(missing_ok=True)
    still_ours()
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
