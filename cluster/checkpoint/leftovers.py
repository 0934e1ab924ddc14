"""Cleaning up what attempts that were killed have left among a run's checkpoints."""

from __future__ import annotations

import logging
from functools import partial

from cluster.checkpoint.catalog import by_step, is_published
from cluster.checkpoint.manifest import MANIFEST_NAME, Manifest, attempt_name
from cluster.checkpoint.rejection import REJECTED_NAME, read_rejection
from cluster.errors import CheckpointError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, list_names, remove_tree
from cluster.storage.retry import retried

logger = logging.getLogger(__name__)

_ATTEMPT = "attempt-"


def clean_leftovers(run_directory: StoragePath, attempt: int) -> list[StoragePath]:
    """Remove what attempts before this one began to save and never published.

    Returns:
        The directories and files removed.
    """
    if isinstance(run_directory, ObjectPath):
        return _clean_store(run_directory / "checkpoints", attempt)
    removed: list[StoragePath] = []
    for directory in sorted((run_directory / "checkpoints").glob("step-*")):
        for child in sorted(directory.glob(f"{_ATTEMPT}*")):
            if child.name != attempt_name(attempt) and not may_be_published(child):
                remove_tree(child)
                removed.append(child)
        removed += _remove_superseded_rejection(directory)
        if not is_published(directory) and not any(directory.glob(f"{_ATTEMPT}*")):
            remove_tree(directory)
    for torn in [*run_directory.glob(".*.tmp"), *(run_directory / "checkpoints").glob("**/.*.tmp")]:
        torn.unlink(missing_ok=True)
        removed.append(torn)
    return removed


def remove_superseded(directory: StoragePath, attempt: int) -> None:
    """Remove what earlier attempts saved of a step that this one has published anew, a rejected checkpoint above all.

    Raises:
        OSError: The step's directory cannot be listed.
    """
    for name in list_names(directory):
        if name.startswith(_ATTEMPT) and name < attempt_name(attempt):
            remove_tree(directory / name)


def _clean_store(place: ObjectPath, attempt: int) -> list[StoragePath]:
    try:
        found = retried(partial(by_step, place), f"listing {place}")
    except OSError as error:  # it is room that is lost, and the next attempt comes to it again
        logger.warning("%s is not cleaned: %s", place, error.strerror or error)
        return []
    return [
        removed for directory, sizes in sorted(found.items()) for removed in _clean_step(directory, set(sizes), attempt)
    ]


def _clean_step(directory: ObjectPath, names: set[str], attempt: int) -> list[StoragePath]:
    """Clean one step's directory, of which these objects are known; of most nothing more has to be asked."""
    attempts = {name.split("/")[0] for name in names if name.startswith(_ATTEMPT) and "/" in name}
    published = MANIFEST_NAME in names
    removed: list[StoragePath] = []
    if not published or len(attempts) > 1:  # those of one attempt and a manifest belong together
        for name in sorted(attempts - {attempt_name(attempt)}):
            if not may_be_published(directory / name):
                remove_tree(directory / name)
                removed.append(directory / name)
    if published and REJECTED_NAME in names:
        removed += _remove_superseded_rejection(directory)
    if not published and len(removed) == len(attempts) and not is_published(directory):
        remove_tree(directory)
    return removed


def _remove_superseded_rejection(directory: StoragePath) -> list[StoragePath]:
    """Remove the mark that was set on a manifest before this one: an attempt was killed when it had published."""
    try:
        rejection = read_rejection(directory)
        if rejection is None or rejection.is_of(Manifest.read(directory / MANIFEST_NAME)):
            return []
    except CheckpointError:
        return []
    (directory / REJECTED_NAME).unlink(missing_ok=True)
    return [directory / REJECTED_NAME]


def may_be_published(attempt_directory: StoragePath) -> bool:
    """Whether the manifest of the step names an attempt's files; of one that cannot be read, it may name any."""
    if not is_published(attempt_directory.parent):
        return False
    try:
        manifest = Manifest.read(attempt_directory.parent / MANIFEST_NAME)
    except CheckpointError:
        return True
    return attempt_name(manifest.attempt) == attempt_directory.name
