"""The checkpoints of a run: listed, verified, rejected, cleaned and kept within bounds."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cluster.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, attempt_name
from cluster.checkpoint.retention import steps_to_delete
from cluster.checkpoint.retry import retried
from cluster.config import CheckpointConfig
from cluster.errors import CheckpointError, RunNotFoundError
from data_pipeline.publish import file_hashes, write_atomically

REJECTED_NAME = "REJECTED.json"
_STEP_DIRECTORY = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """What REJECTED.json says: why no attempt takes the checkpoint."""

    kind: Literal["damage", "loss", "anomaly"]
    """Its files are not what they were, it gives another loss than when it was saved, or losses that went wrong."""
    reason: str
    time_unix_seconds: float


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint of a run; `problem` says why it cannot be used, and is None for one that can."""

    step: int
    directory: Path
    manifest: Manifest | None
    problem: str | None
    rejection: Rejection | None = None
    """What was found when it was first refused; `problem` says it too."""


def list_checkpoints(run_directory: Path) -> list[CheckpointInfo]:
    """Published checkpoints by step, oldest first. Directories without a manifest are not checkpoints yet."""
    found = []
    for directory in (run_directory / "checkpoints").glob("step-*"):
        match = _STEP_DIRECTORY.fullmatch(directory.name)
        if match and (directory / MANIFEST_NAME).exists():
            found.append(_inspect(int(match[1]), directory))
    return sorted(found, key=lambda info: info.step)


def find_checkpoint(run_directory: Path, step: int | None = None) -> CheckpointInfo:
    """The newest usable checkpoint, or that of a given step.

    Raises:
        RunNotFoundError: There is none.
    """
    usable = [info for info in list_checkpoints(run_directory) if info.problem is None]
    chosen = usable if step is None else [info for info in usable if info.step == step]
    if not chosen:
        for info in list_checkpoints(run_directory):
            if info.step == step and info.problem is not None:
                raise CheckpointError(f"{info.problem} Usable steps: {[good.step for good in usable]}.")
        have = ", ".join(str(info.step) for info in usable) or "none"
        wanted = "a usable checkpoint" if step is None else f"a usable checkpoint of step {step}"
        raise RunNotFoundError(f"run {run_directory} has no {wanted[2:]} (usable steps: {have}).")
    return chosen[-1]


def newest_verified(run_directory: Path) -> CheckpointInfo | None:
    """The newest usable checkpoint whose every byte is as it was written; damaged ones are rejected on the way."""
    for info in reversed(list_checkpoints(run_directory)):
        if info.problem is None:
            try:
                verify(info)
            except CheckpointError as error:
                with contextlib.suppress(OSError):  # read-only, or gone in this moment
                    reject(info, str(error), kind="damage")
            else:
                return info
    return None


def verify(
    info: CheckpointInfo,
    files: Iterable[FileRecord] | None = None,
    progress: Callable[[FileRecord], None] = lambda record: None,
) -> None:
    """Compare files in the storage with their sizes and hashes.

    Args:
        info: The checkpoint.
        files: Those to check; all by default.
        progress: Called with each file that was found good.

    Raises:
        CheckpointError: Something is missing, cut short or altered.
    """
    if info.manifest is None or info.problem is not None:
        raise CheckpointError(info.problem or f"checkpoint {info.directory} has no manifest.")
    for record in info.manifest.files if files is None else files:
        path = info.directory / record.path
        try:
            found = retried(partial(file_hashes, path), f"reading {path}")
        except OSError as error:
            raise CheckpointError(f"checkpoint file {path} cannot be read: {error.strerror or error}.") from error
        if found.size_bytes != record.size_bytes:
            raise CheckpointError(
                f"checkpoint file {path} has {found.size_bytes} bytes, and its manifest says {record.size_bytes}."
            )
        if found.hash != record.hash:
            bad = [n for n, (a, b) in enumerate(zip(found.blocks, record.blocks, strict=True)) if a != b]
            raise CheckpointError(
                f"checkpoint file {path} was altered: its hash is {found.hash}, and its manifest says {record.hash} "
                f"(blocks of 1 MiB that differ: {bad[:8]})."
            )
        progress(record)


def reject(info: CheckpointInfo, reason: str, *, kind: Literal["damage", "loss", "anomaly"]) -> None:
    """Mark a checkpoint as unusable, so that no later attempt takes it.

    Its files stay for inspection until retention passes it; removing REJECTED.json takes the rejection back.
    """
    rejection = Rejection(kind=kind, reason=reason, time_unix_seconds=time.time())
    write_atomically(info.directory / REJECTED_NAME, json.dumps(asdict(rejection)).encode())


def rejected_for_loss(run_directory: Path, *, after_step: int) -> list[int]:
    """Steps of later checkpoints that were rejected because they gave another loss."""
    return [
        info.step
        for info in list_checkpoints(run_directory)
        if info.step > after_step and info.rejection is not None and info.rejection.kind == "loss"
    ]


def apply_retention(run_directory: Path, policy: CheckpointConfig) -> None:
    """Delete old checkpoints, and unusable ones that are older than the `keep_last` newest usable ones."""
    infos = list_checkpoints(run_directory)
    usable = [
        (info.step, info.manifest.created_unix_seconds)
        for info in infos
        if info.problem is None and info.manifest is not None
    ]
    deleted = set(steps_to_delete(usable, policy))
    newest = sorted(step for step, _ in usable)[-policy.keep_last :]
    for info in infos:
        if info.step in deleted or (info.problem is not None and newest and info.step < newest[0]):
            delete(info.directory)


def delete(directory: Path) -> None:
    """Remove a checkpoint: first its manifest, so that no reader finds it half gone."""
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def clean_leftovers(run_directory: Path, attempt: int) -> list[Path]:
    """Remove what attempts before this one began to save and never published.

    Returns:
        The directories and files removed.
    """
    removed = []
    for directory in sorted((run_directory / "checkpoints").glob("step-*")):
        published = published_attempt(directory)
        for child in sorted(directory.glob("attempt-*")):
            if child.name not in (published, attempt_name(attempt)):
                shutil.rmtree(child, ignore_errors=True)
                removed.append(child)
        if published is None and not any(directory.glob("attempt-*")):
            shutil.rmtree(directory, ignore_errors=True)
    for torn in [*run_directory.glob(".*.tmp"), *(run_directory / "checkpoints").glob("**/.*.tmp")]:
        torn.unlink(missing_ok=True)
        removed.append(torn)
    return removed


def published_attempt(directory: Path) -> str | None:
    """Attempt whose files the manifest names; of an unreadable manifest, keep every attempt's files."""
    if not (directory / MANIFEST_NAME).exists():
        return None
    try:
        return attempt_name(Manifest.read(directory / MANIFEST_NAME).attempt)
    except CheckpointError:
        return max((child.name for child in directory.glob("attempt-*")), default=None)


def _inspect(step: int, directory: Path) -> CheckpointInfo:
    try:
        manifest = Manifest.read(directory / MANIFEST_NAME)
    except CheckpointError as error:
        return CheckpointInfo(step, directory, None, str(error))
    rejection = _rejection(directory / REJECTED_NAME)
    if rejection is not None:
        problem = f"checkpoint {directory} was rejected: {rejection.reason}"
        return CheckpointInfo(step, directory, manifest, problem, rejection)
    if manifest.step != step:
        return CheckpointInfo(step, directory, manifest, f"checkpoint {directory} holds step {manifest.step}.")
    for record in manifest.files:
        path = directory / record.path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            state = "is missing"
        except OSError as error:
            state = f"cannot be reached: {error.strerror or error}"
        else:
            if size == record.size_bytes:
                continue
            state = f"has {size} bytes instead of {record.size_bytes}"
        return CheckpointInfo(step, directory, manifest, f"checkpoint file {path} {state}.")
    return CheckpointInfo(step, directory, manifest, None)


def _rejection(path: Path) -> Rejection | None:
    """What was found before; a rejection that cannot be read any more is one for damage."""
    try:
        return Rejection(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        reason = f"{path.name} cannot be read ({error}), so why it was rejected is not known"
        return Rejection(kind="damage", reason=reason, time_unix_seconds=0.0)
