"""The checkpoints of a run: listed, verified, rejected and kept within bounds.

In an object store one listing tells which objects there are and their sizes, so that of each checkpoint only the
manifest is asked for.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

from cluster.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest
from cluster.checkpoint.reach import explain, is_gone, unreadable
from cluster.checkpoint.rejection import REJECTED_NAME, Rejection, read_rejection
from cluster.checkpoint.retention import steps_to_delete
from cluster.config import CheckpointConfig
from cluster.errors import CheckpointDamagedError, CheckpointError, CheckpointUnreadableError, RunNotFoundError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import (
    StoragePath,
    each_of,
    list_names,
    list_sizes,
    remove_tree,
    size_bytes,
    write_atomically,
)
from cluster.storage.retry import retried
from cluster.storage.transfer import hashes as file_hashes

logger = logging.getLogger(__name__)

_STEP_DIRECTORY = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint of a run; `problem` says why it cannot be used, and is None for one that can."""

    step: int
    directory: StoragePath
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


@dataclass(frozen=True)
class Published:
    """A step of which there is a manifest, readable or not."""

    step: int
    directory: StoragePath
    sizes: Mapping[str, int] | None
    """Of all objects below the directory, as they were just now; None in a file system."""

    @property
    def may_be_rejected(self) -> bool:
        """Whether there is a mark, or it takes a look to know."""
        return self.sizes is None or REJECTED_NAME in self.sizes


def list_checkpoints(run_directory: StoragePath) -> list[CheckpointInfo]:
    """Published checkpoints by step, oldest first. Directories without a manifest are not checkpoints yet.

    Raises:
        CheckpointUnreadableError: The directory of the checkpoints cannot be listed.
    """
    return each_of(_published(run_directory), _inspect, at=run_directory)


def find_checkpoint(run_directory: StoragePath, step: int | None = None) -> CheckpointInfo:
    """The newest usable checkpoint, or that of a given step.

    Raises:
        RunNotFoundError: There is none.
        CheckpointError: That of the step is damaged or was rejected.
        CheckpointUnreadableError: It, or one that is newer than all usable ones, cannot be read here and now.
    """
    found, refused = _published(run_directory), None
    for published in reversed(found):
        if step in (None, published.step):
            refused = _inspect(published)
            if refused.problem is None:
                return refused
            if step is None and refused.unreadable:
                raise refused.error()
    usable = [info.step for info in each_of(found, _inspect, at=run_directory) if info.problem is None]
    if step is not None and refused is not None:
        raise type(refused.error())(f"{refused.problem} Usable steps: {usable}.")
    have = ", ".join(map(str, usable)) or "none"
    wanted = "usable checkpoint" if step is None else f"usable checkpoint of step {step}"
    raise RunNotFoundError(f"run {run_directory} has no {wanted} (usable steps: {have}).")


def newest_verified(run_directory: StoragePath) -> CheckpointInfo | None:
    """The newest usable checkpoint whose every byte is as it was written; damaged ones are rejected on the way.

    Raises:
        CheckpointUnreadableError: One that is newer cannot be read here and now, and may be whole.
    """
    for published in reversed(_published(run_directory)):
        info = _inspect(published)
        if info.unreadable and not is_gone(info.directory, run_directory):
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


def rejected_for_loss(run_directory: StoragePath, *, after_step: int) -> list[int]:
    """Steps of later checkpoints that were rejected because they gave another loss."""
    marked = [each for each in _published(run_directory) if each.step > after_step and each.may_be_rejected]
    return [
        info.step
        for info in each_of(marked, _inspect, at=run_directory)
        if info.rejection is not None and info.rejection.kind == "loss"
    ]


def apply_retention(run_directory: StoragePath, policy: CheckpointConfig, needed: Collection[int] = ()) -> None:
    """Delete old checkpoints, and rejected ones that are older than the `keep_last` newest usable ones.

    One that is unusable and was never rejected goes when the policy would not keep it if it were usable: what was seen
    of it once is no proof. One that cannot be read here and now stays.

    Args:
        run_directory: The run.
        policy: Which stay.
        needed: Steps whose checkpoints stay besides.
    """
    infos = _inspect_those_that_may_go(run_directory, policy)
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
        if info.step in deleted and info.step not in needed:
            delete(info.directory)


def _inspect_those_that_may_go(run_directory: StoragePath, policy: CheckpointConfig) -> list[CheckpointInfo]:
    """The checkpoints of a run without those that stay whatever they hold, old ones in an object store: they are many.

    Such are those of a permanent step that nobody has rejected, below as many usable ones as stay for being the newest.
    """
    found = _published(run_directory)
    if policy.keep_every_steps is None or policy.keep_every_minutes is not None:
        return each_of(found, _inspect, at=run_directory)
    infos: list[CheckpointInfo] = []
    usable = 0
    for published in reversed(found):
        permanent = published.step % policy.keep_every_steps == 0 and not published.may_be_rejected
        if usable < policy.keep_last or not permanent:
            infos.append(_inspect(published))
            usable += infos[-1].problem is None
    return infos[::-1]


def delete(directory: StoragePath) -> None:
    """Remove a checkpoint: first its manifest, so that no reader finds it half gone."""
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    remove_tree(directory)


def is_published(directory: StoragePath) -> bool:
    """Whether there is a manifest, readable or not."""
    path = directory / MANIFEST_NAME
    try:
        if isinstance(path, ObjectPath):
            return path.is_file()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def by_step(place: ObjectPath) -> dict[ObjectPath, dict[str, int]]:
    """Sizes of all objects below the directories of steps, by directory and by name in it.

    Raises:
        OSError: They cannot be listed.
    """
    found: dict[ObjectPath, dict[str, int]] = {}
    for name, size in list_sizes(place).items():
        first, _, rest = name.partition("/")
        if rest and _STEP_DIRECTORY.fullmatch(first):
            found.setdefault(place / first, {})[rest] = size
    return found


def _published(run_directory: StoragePath) -> list[Published]:
    """Steps with a manifest, oldest first.

    Raises:
        CheckpointUnreadableError: The directory of the checkpoints cannot be listed.
    """
    place = run_directory / "checkpoints"
    try:
        if isinstance(place, ObjectPath):
            sizes = retried(partial(by_step, place), f"listing {place}")
            found = [Published(_step(path), path, held) for path, held in sizes.items() if MANIFEST_NAME in held]
        else:
            names = retried(partial(list_names, place), f"listing {place}")
            paths = [place / name for name in names if _STEP_DIRECTORY.fullmatch(name)]
            found = [Published(_step(path), path, None) for path in paths if is_published(path)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(place, error, lost="If it is lost for good, begin anew with --fresh.") from error
    return sorted(found, key=lambda published: published.step)


def _step(directory: StoragePath) -> int:
    return int(directory.name.removeprefix("step-"))


def _inspect(published: Published) -> CheckpointInfo:
    step, directory, manifest = published.step, published.directory, None
    try:
        manifest = Manifest.read(directory / MANIFEST_NAME)
        rejection = read_rejection(directory) if published.may_be_rejected else None
    except CheckpointError as error:
        return _with_problem(step, directory, manifest, error)
    if rejection is not None and rejection.is_of(manifest):
        problem = f"checkpoint {directory} was rejected: {rejection.reason}"
        return CheckpointInfo(step, directory, manifest, problem, rejection)
    if manifest.step != step:
        return CheckpointInfo(step, directory, manifest, f"checkpoint {directory} holds step {manifest.step}.")
    for record in manifest.files:
        path = directory / record.path
        if published.sizes is not None and published.sizes.get(record.path) == record.size_bytes:
            continue  # what the listing lacks may have come since: the manifest was read after it
        try:
            size = retried(partial(size_bytes, path), f"measuring {path}")
        except OSError as error:
            return _with_problem(step, directory, manifest, explain(path, error, root=directory))
        if size != record.size_bytes:
            problem = f"checkpoint file {path} has {size} bytes instead of {record.size_bytes}."
            return CheckpointInfo(step, directory, manifest, problem)
    return CheckpointInfo(step, directory, manifest, None)


def _with_problem(
    step: int, directory: StoragePath, manifest: Manifest | None, error: CheckpointError
) -> CheckpointInfo:
    out_of_reach = isinstance(error, CheckpointUnreadableError)
    return CheckpointInfo(step, directory, manifest, str(error), unreadable=out_of_reach)
