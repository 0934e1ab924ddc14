"""Telling a file of a checkpoint that is gone from one that cannot be read here and now.

The first is damage, for good: the checkpoint is rejected. The second may be whole, on this very disk: a mount that is
not there yet, an owner or a mode, a server that was restarted. Nothing is concluded from it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from cluster.errors import CheckpointDamagedError, CheckpointError, CheckpointUnreadableError


def explain(path: Path, error: OSError, *, root: Path) -> CheckpointError:
    """What follows from the error of reading a file of a checkpoint.

    Args:
        path: The file, below `root`.
        error: What opening, measuring or reading it ended with, after all tries.
        root: Directory of the checkpoint.

    Returns:
        CheckpointDamagedError where the file is proven to be no file; CheckpointUnreadableError otherwise.
    """
    if isinstance(error, IsADirectoryError):
        return CheckpointDamagedError(f"checkpoint file {path} is a directory.")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) and is_gone(path, root):
        return CheckpointDamagedError(f"checkpoint file {path} is missing.")
    return unreadable(path, error, lost=f"If it is lost for good, remove {root}: then the one before is taken.")


def unreadable(path: Path, error: OSError, *, lost: str) -> CheckpointUnreadableError:
    """The error for what may be whole and cannot be read on this node."""
    return CheckpointUnreadableError(
        f"{path} cannot be read on node {socket.gethostname()}: {error.strerror or error}. It may be whole, so no "
        "checkpoint is rejected for it and no older one is taken in its place. Give the node access to it (mount, "
        f"owner, mode, server) and give the same command again. {lost}"
    )


def is_gone(path: Path, root: Path) -> bool:
    """Whether a listing proves that a path below `root` is not there: of its directory, or of one further up."""
    while path != root:
        try:
            return path.name not in os.listdir(path.parent)
        except FileNotFoundError:
            path = path.parent
        except NotADirectoryError:
            return True
        except OSError:
            return False
    return False  # the root itself is out of sight
