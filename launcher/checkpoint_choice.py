"""Which checkpoint of a run a person means."""

from __future__ import annotations

from cluster.checkpoint import CheckpointInfo, list_checkpoints
from launcher.directories import require_run
from launcher.errors import LauncherError


def checkpoints_of(run: str) -> list[CheckpointInfo]:
    """Checkpoints of a run that exists and has some.

    Raises:
        LauncherError: It is no run, or has none yet.
    """
    found = list_checkpoints(require_run(run))
    if not found:
        raise LauncherError(f"{run}: the run has no checkpoint yet.")
    return found


def chosen_checkpoint(run: str, step: int | None) -> CheckpointInfo:
    """A run's checkpoint of a step, also one that was rejected; without a step the newest that can be used.

    Raises:
        LauncherError: There is no such run or step.
    """
    found = checkpoints_of(run)
    if step is None:
        return next((info for info in reversed(found) if info.problem is None), found[-1])
    for info in found:
        if info.step == step:
            return info
    have = ", ".join(str(info.step) for info in found)
    raise LauncherError(f"{run} has no checkpoint of step {step}. It has those of steps {have}.")
