"""What a directory that a person named is: a run, a checkpoint, a dataset or none of them; and the verb for it."""

from __future__ import annotations

from pathlib import Path

from cluster.storage.operations import StoragePath, storage_path
from launcher.errors import LauncherError


def from_root(path: str) -> str:
    """A path named from the root of the file system; what is none is left alone: a URI."""
    return path if is_uri(path) else str(Path(path).expanduser().resolve())


def is_uri(path: str) -> bool:
    """Whether a place is named by a URI, as one in an object store is."""
    return "://" in path


def require_run(path: str) -> StoragePath:
    """The directory of a run, or its place in an object store.

    Raises:
        LauncherError: It is none; the message says what it is.
    """
    directory = storage_path(path)
    if not directory.is_dir():
        raise LauncherError(f"{path}: no such run. Name the directory of a run, that is storage/name.")
    if _is_run(directory):
        return directory
    if _is_checkpoint(directory):
        raise LauncherError(f"{path} is one checkpoint. Name its run: {directory.parent.parent}.")
    if _is_dataset(directory):
        raise LauncherError(
            f"{path} is a dataset, and has no checkpoints. `longhaul data verify {path}` checks it, "
            f"`longhaul data stats {path}` describes it."
        )
    raise LauncherError(
        f"{path} is neither a run nor a dataset: a run has a run.json, a dataset a manifest.json. "
        "Name the directory of a run, that is storage/name."
    )


def require_dataset(path: str, key: str | None = None) -> Path:
    """The directory of a finished dataset.

    Args:
        path: What the person named.
        key: Configuration key that names it; None for an argument of the command line.

    Raises:
        LauncherError: It is none; the message says what it is.
    """
    subject = f"{path} is" if key is None else f"{key} is '{path}', which is"
    if is_uri(path):
        raise LauncherError(
            f"{subject} a URI, and datasets are read from directories: they are mapped into memory. Copy or mount it "
            "where every node sees it, and name that directory."
        )
    directory = Path(path)
    if _is_dataset(directory):
        return directory
    if _is_run(directory):
        advice = f"`longhaul checkpoint list {path}` lists what it has saved, `longhaul evaluate {path}` scores it."
        raise LauncherError(f"{subject} a run, not a dataset. {advice}")
    if _is_checkpoint(directory):
        raise LauncherError(f"{subject} a checkpoint, not a dataset. Its run is {directory.parent.parent}.")
    if directory.is_dir():
        problem = "it has no manifest.json, so it is something else, or its build did not finish"
    else:
        problem = "there is no such directory"
    remedy = "Check the path" if key is None else f"Name another with {key}=PATH"
    raise LauncherError(f"{subject} no dataset: {problem}. {remedy}, or build it with `longhaul data build CONFIG`.")


def require_run_or_checkpoint(path: str) -> None:
    """Refuse a dataset where a trained model is wanted; what else may be wrong is said where the model is loaded.

    Raises:
        LauncherError: It is a dataset.
    """
    directory = storage_path(path)
    if _is_dataset(directory) and not _is_run(directory):
        raise LauncherError(
            f"{path} is a dataset, and holds no trained model. Name a run's directory (storage/name) or one of its "
            f"checkpoints. `longhaul data stats {path}` describes the dataset."
        )


def _is_run(directory: StoragePath) -> bool:
    return (directory / "run.json").is_file() or (directory / "checkpoints").is_dir()


def _is_checkpoint(directory: StoragePath) -> bool:
    return (directory / "MANIFEST.json").is_file() and directory.parent.name == "checkpoints"


def _is_dataset(directory: StoragePath) -> bool:
    return (directory / "manifest.json").is_file()
