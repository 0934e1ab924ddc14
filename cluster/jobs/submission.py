"""A submission through the Ray Jobs API, and the chain that it belongs to when a dead driver was replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ORIGIN = "longhaul_origin"
"""Metadata key of a job that continues another: the first submission of the chain."""
PREDECESSOR = "longhaul_predecessor"
"""Metadata key: the submission whose driver died."""
RUN = "longhaul_run"
"""Metadata key: name of the run, or of the dataset that is built."""
DIRECTORY = "longhaul_directory"
"""Metadata key of a training: its run's directory, that is `storage/name`."""
VERB = "longhaul_verb"
"""Metadata key: what the job does."""
PRETRAIN = "pretrain"
FINETUNE = "finetune"
TRAININGS = (PRETRAIN, FINETUNE)
"""The verbs of trainings."""
_INTERRUPTED = 130
"""Exit code of a driver that was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a driver knows of the job that it runs as."""

    id: str
    origin: str
    """First submission of the chain; the same id unless a guardian submitted the job again."""
    predecessor: str | None = None
    """The submission whose driver died."""


def driver_was_killed(status: str, exit_code: int | None) -> bool:
    """Whether a job ended because its driver was killed, not because it had something to say.

    Args:
        status: Ray's job status.
        exit_code: Of the entrypoint, negative or 128 + n after signal n; None where its supervisor died with it.
    """
    if status != "FAILED":
        return False
    return exit_code is None or exit_code < 0 or (exit_code > 128 and exit_code != _INTERRUPTED)


def chain(jobs: list[Any], origin: str) -> list[Any]:
    """The submissions of a chain among Ray's job details, oldest first."""
    members = [job for job in jobs if job.submission_id == origin or (job.metadata or {}).get(ORIGIN) == origin]
    return sorted(members, key=lambda job: (job.start_time or 0, len(job.submission_id), job.submission_id))
