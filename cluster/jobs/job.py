"""A job as a cluster describes it, and which one of many a name means."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from cluster.errors import JobRefusedError, RunBusyError
from cluster.jobs.submission import (
    DIRECTORY,
    FINETUNE,
    ORIGIN,
    PREDECESSOR,
    PRETRAIN,
    RUN,
    TRAININGS,
    VERB,
    driver_was_killed,
)
from cluster.storage.operations import storage_path

_WITH_OUTPUT = "last available logs (truncated"
"""Ray ends the message of a failed job with the end of its output, below a line that says so."""
_NAMED = 5
"""So many jobs are named where the one that was asked for is not there."""
_ERROR = "error: "
"""How the command line begins what it has to say when it fails."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A submission as the cluster describes it."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    entrypoint: str
    message: str
    exit_code: int | None
    start_unix_seconds: float | None
    end_unix_seconds: float | None
    metadata: dict[str, str]

    @property
    def ended(self) -> bool:
        """Whether nothing runs any more."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")

    @property
    def run(self) -> str | None:
        """Name of the run that it trains, or of the dataset that it builds; None where nobody said."""
        return self.metadata.get(RUN)

    @property
    def verb(self) -> str | None:
        """What it does."""
        return self.metadata.get(VERB)

    @property
    def directory(self) -> str | None:
        """Directory of the run that it trains; None for other verbs, and where nobody said."""
        return self.metadata.get(DIRECTORY)

    @property
    def origin(self) -> str:
        """First submission of its chain."""
        return self.metadata.get(ORIGIN, self.id)

    @property
    def continues(self) -> str | None:
        """The submission whose driver died."""
        return self.metadata.get(PREDECESSOR)

    @property
    def driver_was_killed(self) -> bool:
        """Whether its guardian will submit it again."""
        return driver_was_killed(self.status, self.exit_code)

    @property
    def was_refused(self) -> bool:
        """Whether it ended because another driver held the run: it is not the job that stands for the run."""
        return self.status == "FAILED" and self.exit_code == RunBusyError.exit_code

    @property
    def result(self) -> int:
        """Exit code for the shell of the person who waits."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 130
        return self.exit_code if self.exit_code is not None and self.exit_code > 0 else 1

    @property
    def reason(self) -> str | None:
        """Why it failed; None where it did not, or where nothing is known."""
        if self.status != "FAILED":
            return None
        if self.driver_was_killed and self.exit_code is not None:
            return f"the driver was killed by {_signal_name(self.exit_code)} (exit code {self.exit_code})"
        output = self._output
        if not output:
            return self.message.strip() or None
        begins = [index for index, line in enumerate(output) if line.startswith(_ERROR)]
        return "\n".join(output[begins[-1] :]).removeprefix(_ERROR) if begins else output[-1]

    @property
    def last_line(self) -> str | None:
        """The last that it printed before it failed; None where Ray kept nothing of it."""
        return self._output[-1] if self._output else None

    @property
    def _output(self) -> list[str]:
        heading, _, output = self.message.partition("\n")
        return [line.rstrip() for line in output.splitlines() if line.strip()] if _WITH_OUTPUT in heading else []


def describe(details: Any, run_directories: Mapping[str, str]) -> Job:
    """A job out of Ray's details.

    Args:
        details: Ray's.
        run_directories: Of jobs whose metadata does not tell, by the first submission of their chain.
    """
    metadata = dict(details.metadata or {})
    known = run_directories.get(metadata.get(ORIGIN, details.submission_id))
    if known is not None and RUN not in metadata:
        verb = FINETUNE if FINETUNE in details.entrypoint.split() else PRETRAIN
        metadata |= run_metadata(known, verb)
    return Job(
        id=details.submission_id,
        status=details.status.value,
        entrypoint=details.entrypoint,
        message=details.message or "",
        exit_code=details.driver_exit_code,
        start_unix_seconds=details.start_time / 1000 if details.start_time else None,
        end_unix_seconds=details.end_time / 1000 if details.end_time else None,
        metadata=metadata,
    )


def run_metadata(directory: str, verb: str = PRETRAIN) -> dict[str, str]:
    """Metadata of a job that trains the run in a directory, that is `storage/name`, by one of TRAININGS."""
    return {RUN: storage_path(directory).name, VERB: verb, DIRECTORY: directory}


def choose(known: Sequence[Job], reference: str, address: str) -> tuple[Job, list[Job]]:
    """The job that a submission id or a name means.

    Of a name, a training is preferred to what has only the name in common with it (the build of a dataset), a job that
    had the run to one that was refused because another had it, a running one to one that has ended, and the newest.

    Args:
        known: All jobs, oldest first.
        reference: Submission id or name.
        address: Of their cluster, for messages.

    Returns:
        The job, and the newest job of each other verb with that name, which only their ids mean.

    Raises:
        JobRefusedError: There is none, or several trainings of that name are at work.
    """
    for job in known:
        if job.id == reference:
            return job, []
    named = [job for job in known if job.run == reference]
    if not named:
        raise JobRefusedError(_unknown(known, reference, address))
    trainings = [job for job in named if job.verb in TRAININGS] or named
    candidates = [job for job in trainings if not job.was_refused] or trainings
    at_work = [job for job in candidates if not job.ended]
    if len(at_work) > 1:
        places = ", ".join(job.id + (f" in {job.directory}" if job.directory else "") for job in at_work)
        raise JobRefusedError(f"several jobs on {address} work on a run called {reference!r}: {places}. Name one's id.")
    chosen = (at_work or candidates)[-1]
    others = {job.verb: job for job in named if job.verb != chosen.verb}
    return chosen, list(others.values())


def in_the_way(known: Sequence[Job], directory: str) -> Job | None:
    """A job at work that trains the run of a directory, so that another one would be refused by the run's lease.

    A job whose directory is not known, as one of an older version, counts by the name of its run.
    """
    wanted = storage_path(directory)
    same_name = (job for job in known if not job.ended and job.verb in TRAININGS and job.run == wanted.name)
    return next((job for job in same_name if job.directory is None or storage_path(job.directory) == wanted), None)


def _unknown(known: Sequence[Job], reference: str, address: str) -> str:
    running = [job for job in known if not job.ended][-_NAMED:]
    at_work = ", ".join(f"{job.id} ({job.run or shorten(job.entrypoint, 60)})" for job in running)
    newest = ", ".join(job.id for job in known[-_NAMED:]) or "none at all"
    return (
        f"there is no job {reference!r} on {address}: no submission id and no name of a run. "
        + (
            f"The newest at work there: {at_work}. "
            if at_work
            else f"Nothing is at work there; the newest jobs: {newest}. "
        )
        + "A job from plain `ray job submit` has the name of its run from the moment at which its driver has joined "
        "the cluster, and its id before. `longhaul jobs list --all` shows all."
    )


def _signal_name(exit_code: int) -> str:
    number = -exit_code if exit_code < 0 else exit_code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
