"""The checkpoints of a run: listed, verified, rejected, cleaned and kept within bounds."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cluster.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, attempt_name
from cluster.checkpoint.reach import explain, is_gone, unreadable
from cluster.checkpoint.retention import steps_to_delete
from cluster.checkpoint.retry import retried
from cluster.config import CheckpointConfig
from cluster.errors import CheckpointDamagedError, CheckpointError, CheckpointUnreadableError, RunNotFoundError
from data_pipeline.publish import file_hashes, write_atomically

logger = logging.getLogger(__name__)

REJECTED_NAME = "REJECTED.json"
_STEP_DIRECTORY = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """What REJECTED.json says: why no attempt takes the checkpoint."""

    kind: Literal["damage", "loss", "anomaly"]
    """Its files are not what they were, it gives another loss than when it was saved, or losses that went wrong."""
    reason: str
    time_unix_seconds: float
    attempt: int | None = None
    """Attempt of the manifest that was refused: another manifest of the step is not meant. None means any."""
    created_unix_seconds: float | None = None
    """When that manifest was made."""

    def is_of(self, manifest: Manifest) -> bool:
        """Whether a manifest is the one that was refused."""
        refused = (self.attempt, self.created_unix_seconds)
        return self.attempt is None or refused == (manifest.attempt, manifest.created_unix_seconds)


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint of a run; `problem` says why it cannot be used, and is None for one that can."""

    step: int
    directory: Path
    manifest: Manifest | None
    problem: str | None
    rejection: Rejection | None = None
    """What was found when it was first refused; `problem` says it too."""
    unreadable: bool = False
    """Whether the problem is only that it cannot be read here and now: it may be whole."""

    def error(self) -> CheckpointError:
        """The problem as an error to raise."""
        kind = CheckpointUnreadableError if self.unreadable else CheckpointError
        return kind(self.problem or f"checkpoint {self.directory} has no manifest.")


def list_checkpoints(run_directory: Path) -> list[CheckpointInfo]:
    """Published checkpoints by step, oldest first. Directories without a manifest are not checkpoints yet.

    Raises:
        CheckpointUnreadableError: The directory of the checkpoints cannot be listed.
    """
    place = run_directory / "checkpoints"
    try:
        names = retried(partial(os.listdir, place), f"listing {place}")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(place, error, lost="If it is lost for good, begin anew with --fresh.") from error
    found = []
    for match in filter(None, map(_STEP_DIRECTORY.fullmatch, names)):
        if _is_published(place / match[0]):
            found.append(_inspect(int(match[1]), place / match[0]))
    return sorted(found, key=lambda info: info.step)


def find_checkpoint(run_directory: Path, step: int | None = None) -> CheckpointInfo:
    """The newest usable checkpoint, or that of a given step.

    Raises:
        RunNotFoundError: There is none.
        CheckpointError: That of the step is damaged or was rejected.
        CheckpointUnreadableError: It, or one that is newer than all usable ones, cannot be read here and now.
    """
    found = list_checkpoints(run_directory)
    usable = [info for info in found if info.problem is None]
    chosen = usable if step is None else [info for info in usable if info.step == step]
    for info in found:
        if step is None and info.unreadable and info.step > max((good.step for good in usable), default=-1):
            raise info.error()
    if not chosen:
        for info in found:
            if info.step == step and info.problem is not None:
                raise type(info.error())(f"{info.problem} Usable steps: {[good.step for good in usable]}.")
        have = ", ".join(str(info.step) for info in usable) or "none"
        wanted = "a usable checkpoint" if step is None else f"a usable checkpoint of step {step}"
        raise RunNotFoundError(f"run {run_directory} has no {wanted[2:]} (usable steps: {have}).")
    return chosen[-1]


def newest_verified(run_directory: Path) -> CheckpointInfo | None:
    """The newest usable checkpoint whose every byte is as it was written; damaged ones are rejected on the way.

    Raises:
        CheckpointUnreadableError: One that is newer cannot be read here and now, and may be whole.
    """
    for info in reversed(list_checkpoints(run_directory)):
        if info.unreadable:
            raise info.error()
        if info.problem is None:
            try:
                verify(info)
            except CheckpointDamagedError as error:
                reject_if_possible(info, str(error), kind="damage")
            except CheckpointUnreadableError:
                if not is_gone(info.directory, run_directory):  # retention removes it, as its run goes on
                    raise
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
        CheckpointDamagedError: Something is proven to be missing, cut short or altered.
        CheckpointUnreadableError: Something cannot be read here and now, and may be whole.
        CheckpointError: It was rejected, or found unusable when it was listed.
    """
    if info.manifest is None or info.problem is not None:
        raise info.error()
    for record in info.manifest.files if files is None else files:
        path = info.directory / record.path
        try:
            found = retried(partial(file_hashes, path), f"reading {path}")
        except OSError as error:
            raise explain(path, error, root=info.directory) from error
        if found.size_bytes != record.size_bytes:
            raise CheckpointDamagedError(
                f"checkpoint file {path} has {found.size_bytes} bytes, and its manifest says {record.size_bytes}."
            )
        if found.hash != record.hash:
            bad = [n for n, (a, b) in enumerate(zip(found.blocks, record.blocks, strict=True)) if a != b]
            raise CheckpointDamagedError(
                f"checkpoint file {path} was altered: its hash is {found.hash}, and its manifest says {record.hash} "
                f"(blocks of 1 MiB that differ: {bad[:8]})."
            )
        progress(record)


def reject(info: CheckpointInfo, reason: str, *, kind: Literal["damage", "loss", "anomaly"]) -> None:
    """Mark a checkpoint as unusable, so that no later attempt takes it.

    Its files stay for inspection until retention passes it; removing REJECTED.json takes the rejection back.

    Raises:
        OSError: The mark could not be written.
    """
    rejection = Rejection(
        kind=kind,
        reason=reason,
        time_unix_seconds=time.time(),
        attempt=info.manifest.attempt if info.manifest is not None else None,
        created_unix_seconds=info.manifest.created_unix_seconds if info.manifest is not None else None,
    )
    write_atomically(info.directory / REJECTED_NAME, json.dumps(asdict(rejection)).encode())


def reject_if_possible(info: CheckpointInfo, reason: str, *, kind: Literal["damage", "loss", "anomaly"]) -> None:
    """Mark a checkpoint as unusable; where that cannot be written it is only passed over, and looked at again later."""
    try:
        reject(info, reason, kind=kind)
    except OSError as error:  # full, read-only, or gone in this moment
        logger.warning(
            "checkpoint %s is passed over and could not be marked as rejected: %s", info.directory, error.strerror
        )


def rejected_for_loss(run_directory: Path, *, after_step: int) -> list[int]:
    """Steps of later checkpoints that were rejected because they gave another loss."""
    return [
        info.step
        for info in list_checkpoints(run_directory)
        if info.step > after_step and info.rejection is not None and info.rejection.kind == "loss"
    ]


def apply_retention(run_directory: Path, policy: CheckpointConfig) -> None:
    """Delete old checkpoints, and rejected ones that are older than the `keep_last` newest usable ones.

    One that is unusable and was never rejected goes when the policy would not keep it if it were usable: what was seen
    of it once is no proof. One that cannot be read here and now stays.
    """
    infos = list_checkpoints(run_directory)
    usable = [
        (info.step, info.manifest.created_unix_seconds)
        for info in infos
        if info.problem is None and info.manifest is not None
    ]
    deleted = set(steps_to_delete(usable, policy))
    newest = sorted(step for step, _ in usable)[-policy.keep_last :]
    for info in infos:
        if info.rejection is not None and newest and info.step < newest[0]:
            deleted.add(info.step)
        elif info.problem is not None and info.rejection is None and not info.unreadable:
            created_unix_seconds = info.manifest.created_unix_seconds if info.manifest is not None else 0.0
            deleted |= {info.step} & set(steps_to_delete([*usable, (info.step, created_unix_seconds)], policy))
    for info in infos:
        if info.step in deleted:
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
        for child in sorted(directory.glob("attempt-*")):
            if child.name != attempt_name(attempt) and not may_be_published(child):
                shutil.rmtree(child, ignore_errors=True)
                removed.append(child)
        removed += _remove_superseded_rejection(directory)
        if not _is_published(directory) and not any(directory.glob("attempt-*")):
            shutil.rmtree(directory, ignore_errors=True)
    for torn in [*run_directory.glob(".*.tmp"), *(run_directory / "checkpoints").glob("**/.*.tmp")]:
        torn.unlink(missing_ok=True)
        removed.append(torn)
    return removed


def _remove_superseded_rejection(directory: Path) -> list[Path]:
    """Remove the mark that was set on a manifest before this one: an attempt was killed when it had published."""
    try:
        rejection = _rejection(directory)
        if rejection is None or rejection.is_of(Manifest.read(directory / MANIFEST_NAME)):
            return []
    except CheckpointError:
        return []
    (directory / REJECTED_NAME).unlink(missing_ok=True)
    return [directory / REJECTED_NAME]


def may_be_published(attempt_directory: Path) -> bool:
    """Whether the manifest of the step names an attempt's files; of one that cannot be read, it may name any."""
    if not _is_published(attempt_directory.parent):
        return False
    try:
        manifest = Manifest.read(attempt_directory.parent / MANIFEST_NAME)
    except CheckpointError:
        return True
    return attempt_name(manifest.attempt) == attempt_directory.name


def _is_published(directory: Path) -> bool:
    """Whether there is a manifest, readable or not."""
    try:
        (directory / MANIFEST_NAME).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _inspect(step: int, directory: Path) -> CheckpointInfo:
    manifest = None
    try:
        manifest = Manifest.read(directory / MANIFEST_NAME)
        rejection = _rejection(directory)
    except CheckpointError as error:
        return _with_problem(step, directory, manifest, error)
    if rejection is not None and rejection.is_of(manifest):
        problem = f"checkpoint {directory} was rejected: {rejection.reason}"
        return CheckpointInfo(step, directory, manifest, problem, rejection)
    if manifest.step != step:
        return CheckpointInfo(step, directory, manifest, f"checkpoint {directory} holds step {manifest.step}.")
    for record in manifest.files:
        path = directory / record.path
        try:
            size = retried(path.stat, f"measuring {path}").st_size
        except OSError as error:
            return _with_problem(step, directory, manifest, explain(path, error, root=directory))
        if size != record.size_bytes:
            problem = f"checkpoint file {path} has {size} bytes instead of {record.size_bytes}."
            return CheckpointInfo(step, directory, manifest, problem)
    return CheckpointInfo(step, directory, manifest, None)


def _with_problem(step: int, directory: Path, manifest: Manifest | None, error: CheckpointError) -> CheckpointInfo:
    out_of_reach = isinstance(error, CheckpointUnreadableError)
    return CheckpointInfo(step, directory, manifest, str(error), unreadable=out_of_reach)


def _rejection(directory: Path) -> Rejection | None:
    """What was found before; one whose words are lost is one for damage.

    Raises:
        CheckpointUnreadableError: Whether the checkpoint was rejected cannot be read here and now.
    """
    path = directory / REJECTED_NAME
    try:
        return Rejection(**json.loads(retried(path.read_bytes, f"reading {path}")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error, lost=f"If it is lost for good, remove {path}.") from error
    except (ValueError, TypeError, RecursionError) as error:
        reason = f"{path.name} cannot be read ({error}), so why it was rejected is not known"
        return Rejection(kind="damage", reason=reason, time_unix_seconds=0.0)
