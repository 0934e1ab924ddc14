"""Where W&B keeps its files: in the run's directory or, where that is no directory, on this machine until the end."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from pathlib import Path

from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath
from cluster.storage.scratch import scratch_directory
from cluster.storage.transfer import copy_file

logger = logging.getLogger(__name__)

WANDB_NAME = "wandb"
_OFFLINE = "offline-run-*"


class WandbPlace:
    """The directory that W&B is given, and what becomes of it.

    W&B appends to its files, which an object store cannot do. So they are written on this machine, in a directory of
    this place alone, and put below `wandb/` of the run when an attempt ends, where they are what `wandb sync` needs.
    Those of a process that was killed are no loss: the next one shows the whole record again. A process that begins
    several attempts has a place for each, and may still be putting the files of one while the next is written.
    """

    def __init__(self, run_directory: StoragePath) -> None:
        self._run_directory = run_directory
        if isinstance(run_directory, ObjectPath):
            scratch = scratch_directory(run_directory) / WANDB_NAME
            _remove_those_of_the_dead(scratch)
            self.parent = scratch / f"{os.getpid()}-{secrets.token_hex(4)}"
        else:
            self.parent = run_directory
        self.directory: Path = self.parent / WANDB_NAME

    def make(self) -> None:
        """Make sure that the directory is there."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def keep(self) -> None:
        """Put offline files where the run lies, and leave nothing here. Raises nothing: tracking is a view."""
        if not isinstance(self._run_directory, ObjectPath) or not self.directory.is_dir():
            return
        target = self._run_directory / WANDB_NAME
        try:
            if any(self.directory.glob(_OFFLINE)):
                for path in sorted(each for each in self.directory.rglob("*") if each.is_file()):
                    copy_file(path, target / str(path.relative_to(self.directory)))
        except OSError as error:
            logger.warning(
                "W&B's offline files could not be put into %s (%s); they are in %s on this node",
                target,
                error,
                self.parent,
            )
            return
        shutil.rmtree(self.parent, ignore_errors=True)


def _remove_those_of_the_dead(scratch: Path) -> None:
    with contextlib.suppress(OSError):
        for each in scratch.iterdir():
            pid = each.name.partition("-")[0]
            if pid.isdigit() and not Path("/proc", pid).exists():
                shutil.rmtree(each, ignore_errors=True)
