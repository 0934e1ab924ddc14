"""Copies of checkpoint files on a node's own disk, so that a restart there need not read the storage.

A copy is never trusted for where it lies: it stands for a file of a checkpoint only where its size and its hash are
those in the manifest, which is always the storage's. Losing a copy, or having none, costs time and nothing else.

    LOCAL/austen-1f3a9c0e/.longhaul-run                                          path or URI of the run
    LOCAL/austen-1f3a9c0e/step-00000100/attempt-00001/rank-00000.safetensors     the same bytes as in the storage
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import xxhash

from cluster.checkpoint.manifest import step_directory
from cluster.errors import StorageError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, list_names, storage_path

logger = logging.getLogger(__name__)

_MARKER = ".longhaul-run"  # not a word that another program may use: a directory with it may be removed


class LocalCopies:
    """This node's copies of one run's checkpoint files.

    Args:
        root: Directory on the node's own disk, `checkpoint.local_copy`.
        run_directory: The run, in the storage.
    """

    def __init__(self, root: Path, run_directory: StoragePath) -> None:
        self._run_directory = run_directory.absolute()
        self._root = root
        self._directory = root / _name_of(self._run_directory)
        self._complained = False
        self._looked_for_others = False

    def path(self, step: int, relative: str) -> Path:
        """Where the copy of a file of a step's checkpoint lies, if there is one.

        Args:
            step: Step of the checkpoint.
            relative: The file's path within the step's directory.
        """
        return self._directory / step_directory(self._run_directory, step).name / relative

    @contextlib.contextmanager
    def copying(self, step: int, relative: str, size_bytes: int) -> Iterator[Callable[[memoryview], None]]:
        """Make a copy of a file of about so many bytes: gives what takes its blocks, in order, and never fails.

        The copy comes to its place at the end, unless the block ends with an error. That none can be made is said once.
        """
        write = _Write(self.path(step, relative))
        try:
            write.path.parent.mkdir(parents=True, exist_ok=True)
            (self._directory / _MARKER).write_bytes(os.fsencode(str(self._run_directory)))
            write.open(size_bytes)
        except OSError as error:
            write.give_up(error)
        try:
            yield write.add
        except BaseException:
            write.give_up(OSError("the file in the storage could not be written"))
            raise
        write.finish()
        if write.problem is not None and not self._complained:
            self._complained = True
            logger.warning(
                "no local copy at %s: %s; checkpoints go to the storage alone, and a restart reads them from there",
                write.path,
                write.problem.strerror or write.problem,
            )

    def prune(self, step: int) -> None:
        """Keep the copies of a step's checkpoint, which may not be published yet, and of the newest before it.

        Copies of later steps are of a future that was given up. Those of runs that are no more go as well.
        """
        with contextlib.suppress(OSError, ValueError):  # the disk fails, or another rank removes the same
            steps = {int(child.name.removeprefix("step-")): child for child in self._directory.glob("step-*")}
            kept = {step, max((other for other in steps if other < step), default=step)}
            for other in steps.keys() - kept:
                shutil.rmtree(steps[other], ignore_errors=True)
        with contextlib.suppress(OSError):
            for marker in list(self._root.glob(f"*/{_MARKER}")):
                if marker.parent != self._directory and self._is_of_a_run_that_is_no_more(marker):
                    shutil.rmtree(marker.parent, ignore_errors=True)
        self._looked_for_others = True

    def _is_of_a_run_that_is_no_more(self, marker: Path) -> bool:
        """Whether the copies beside a marker are ours, and the storage of their run answers and no longer holds it.

        A store is asked once by each process, not at every save.
        """
        try:
            run_directory = storage_path(os.fsdecode(marker.read_bytes()))
            if marker.parent.name != _name_of(run_directory):
                return False
            if isinstance(run_directory, ObjectPath) and self._looked_for_others:
                return False
            there = list_names(run_directory.parent)
        except (OSError, ValueError, StorageError):  # what cannot be read, or is no path, proves nothing
            return False
        return bool(there) and run_directory.name not in there  # empty: the place of a volume that is not mounted


def _name_of(run_directory: StoragePath) -> str:
    """Name of the directory of a run's copies: the run's name, and a key that tells runs of one name apart."""
    return f"{run_directory.name}-{xxhash.xxh3_64_hexdigest(str(run_directory).encode())[:8]}"


class _Write:
    """A copy that is being written; whatever goes wrong with it ends it, and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: OSError | None = None
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file: BinaryIO | None = None

    def open(self, size_bytes: int) -> None:
        """Create the file, where there is room for it."""
        free_bytes = shutil.disk_usage(self.path.parent).free
        if free_bytes < size_bytes:
            raise OSError(None, f"{size_bytes:,} bytes are needed, and {free_bytes:,} are free")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by finish or give_up

    def add(self, block: memoryview) -> None:
        """Append a block."""
        if self._file is not None:
            try:
                self._file.write(block)
            except OSError as error:
                self.give_up(error)

    def finish(self) -> None:
        """Give the file its name, if it is whole."""
        if self._file is None:
            return
        try:
            self._file.close()
            self._temporary.rename(self.path)
        except OSError as error:
            self.give_up(error)
        self._file = None

    def give_up(self, error: OSError) -> None:
        """Remove what was written."""
        self.problem = error
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        self._file = None
