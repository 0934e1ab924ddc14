"""The mark on a checkpoint that no attempt may take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from cluster.checkpoint.manifest import Manifest
from cluster.checkpoint.reach import unreadable
from cluster.storage.operations import StoragePath
from cluster.storage.retry import retried

REJECTED_NAME = "REJECTED.json"


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


def read_rejection(directory: StoragePath) -> Rejection | None:
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
