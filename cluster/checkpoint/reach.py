"""Telling a file of a checkpoint that is gone from one that cannot be read here and now.

The first is damage, for good: the checkpoint is rejected. The second may be whole: a mount that is not there yet, an
owner or a mode, a server that was restarted, a store that does not answer. Nothing is concluded from it.

That a store knows no such object proves as much as an error of a file system: little, until a listing of what lies
around it was answered, and lacks it.
"""

from __future__ import annotations

import socket

from cluster.errors import CheckpointDamagedError, CheckpointError, CheckpointUnreadableError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, list_names


def explain(path: StoragePath, error: OSError, *, root: StoragePath) -> CheckpointError:
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


def unreadable(path: StoragePath, error: OSError, *, lost: str) -> CheckpointUnreadableError:
    """The error for what may be whole and cannot be read on this node."""
    access = "credentials, endpoint, network" if isinstance(path, ObjectPath) else "mount, owner, mode, server"
    return CheckpointUnreadableError(
        f"{path} cannot be read on node {socket.gethostname()}: {error.strerror or error}. It may be whole, so no "
        "checkpoint is rejected for it and no older one is taken in its place. Give the node access to it "
        f"({access}) and give the same command again. {lost}"
    )


def is_gone(path: StoragePath, root: StoragePath) -> bool:
    """Whether a listing proves that a path below `root` is not there: of its directory, or of one further up."""
    while path != root:
        try:
            return path.name not in list_names(path.parent)
        except FileNotFoundError:
            path = path.parent
        except NotADirectoryError:
            return True
        except OSError:
            return False
    return False  # the root itself is out of sight
