"""The Ray Jobs API as people need it: errors with a remedy, logs through dropped connections, the true result."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from cluster.errors import JobError, JobRefusedError
from cluster.jobs.guardian import watched_directories
from cluster.jobs.job import Job, choose, describe, in_the_way
from cluster.jobs.problems import connection_errors, explanation, first_line, is_refusal
from cluster.jobs.submission import RUN, chain

logger = logging.getLogger(__name__)

STOP_GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Environment variable of a job: seconds between SIGTERM and SIGKILL when it is stopped; Ray's default is 3."""
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers that tell of every upload and connection."""
_NO_AGENT = "No available agent to submit job"
_AGENT_SECONDS = 60.0
_POLL_SECONDS = 1.0
_SILENCE_SECONDS = 60.0
"""A log connection that said nothing for so long is made anew: a cut one may look alive for ever."""
_LONGEST_PAUSE_SECONDS = 30.0
_ATTEMPTS_AT_AN_OLD_LOG = 3
"""How often the output of a job that has ended is asked for in vain."""
_SUCCESSOR_SECONDS = 60.0
"""How long the guardian of a killed driver is given to submit the job again."""


class Jobs:
    """Jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """Reach the cluster.

        Args:
            address: `http://HEAD:8265`, the head's dashboard.

        Raises:
            JobError: It does not answer, refuses the token, or runs another Ray.
        """
        import ray
        from ray.job_submission import JobSubmissionClient

        self.address = address
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray's client would prefer what else the environment names
        with self._explained():
            self._client = JobSubmissionClient(address)
            version = self._client._server_ray_version  # `get_version` gives that of the API
        if version != ray.__version__:
            raise JobError(
                f"the cluster at {address} runs Ray {version}, and this command Ray {ray.__version__}: a run is only "
                "as reliable as the pair that was tested. Install the same version on both sides."
            )

    def submit(
        self,
        entrypoint: str,
        *,
        submission_id: str,
        working_directory: str,
        metadata: dict[str, str],
        stop_grace_seconds: int,
    ) -> str:
        """Submit a command.

        Returns:
            The submission id.
        """
        runtime_env = {
            "working_dir": working_directory,
            "env_vars": {STOP_GRACE_VARIABLE: str(stop_grace_seconds)},
        }
        deadline = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                with self._explained():
                    job: str = self._client.submit_job(
                        entrypoint=entrypoint, submission_id=submission_id, runtime_env=runtime_env, metadata=metadata
                    )
            except JobError as error:  # a head that has just started answers before it can take jobs
                if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return job

    def all(self) -> list[Job]:
        """All submissions, oldest first."""
        with self._explained():
            found = [details for details in self._client.list_jobs() if details.submission_id]
        return sorted(self._described(found), key=lambda job: job.start_unix_seconds or 0.0)

    def get(self, reference: str, say: Callable[[str], None] = logger.debug) -> Job:
        """A job by its submission id, or by the name of its run: the one that is at work, else the newest that had it.

        Args:
            reference: Submission id or name.
            say: Told of jobs that have the name in common with the chosen one, and do something else.

        Raises:
            JobRefusedError: There is none, or several of that name are at work.
        """
        job, namesakes = choose(self.all(), reference, self.address)
        for other in namesakes:
            say(f"{job.id} is meant; job {other.id} ({other.verb}) has the same name, and only its id means it")
        return job

    def require_free(self, directory: str) -> None:
        """Make sure that no job at work trains a run, before another one is submitted for it.

        Args:
            directory: The run's, that is `storage/name`.

        Raises:
            JobRefusedError: One does.
        """
        job = in_the_way(self.all(), directory)
        if job is not None:
            raise JobRefusedError(
                f"job {job.id} on {self.address} works on run {job.run!r} already"
                f"{f' in {job.directory}' if job.directory else ''} ({job.status.lower()}), and two drivers cannot "
                f"write one run. Nothing was submitted. Follow it with `longhaul jobs logs {job.id} --follow`, stop it "
                f"with `longhaul jobs stop {job.id}`, or give this run another name with name=NAME."
            )

    def newest_of_chain(self, job: Job) -> Job:
        """The last submission of the chain that a job belongs to."""
        members = self._chain(job)
        return members[-1] if members else job

    def next_of_chain(self, job: Job) -> Job | None:
        """The submission that took a job's place; None where there is none so far."""
        members = self._chain(job)
        later = [place + 1 for place, member in enumerate(members) if member.id == job.id]
        return members[later[0]] if later and later[0] < len(members) else None

    def logs(self, job: Job) -> str:
        """All that a job has printed so far."""
        with self._explained():
            text: str = self._client.get_job_logs(job.id)
        return text

    def stop(self, job: Job) -> bool:
        """Ask a job's driver to stop; it is killed when its time of grace is over.

        Returns:
            Whether there was a driver to be asked.
        """
        with self._explained():
            return bool(self._client.stop_job(job.id))

    def follow(self, job: Job, write: Callable[[str], None], say: Callable[[str], None]) -> Job:
        """Write a job's output as it comes, until the job and every job that continues it has ended.

        Args:
            job: The submission.
            write: Gets the output.
            say: Told about lost connections and dead drivers.

        Returns:
            The last job of the chain, ended.
        """
        while True:
            try:
                job = self._follow_one(job, write, say)
            except _WriteError as error:
                raise error.reason from None
            if not job.driver_was_killed:
                return job
            say(f"the driver of job {job.id} was killed (exit code {job.exit_code}); waiting for its guardian")
            successor = self.successor(job)
            if successor is None:
                say(f"nobody submitted job {job.id} again")
                return job
            say(f"job {successor.id} continues the run")
            job = successor

    def successor(self, job: Job) -> Job | None:
        """The submission that a guardian makes, or made, after a driver was killed; None where none comes."""
        deadline = time.monotonic() + _SUCCESSOR_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(JobError):
                following = self.next_of_chain(job)
                if following is not None:
                    return following
            time.sleep(_POLL_SECONDS)
        return None

    def _follow_one(self, job: Job, write: Callable[[str], None], say: Callable[[str], None]) -> Job:
        output = _Output(write)
        lost: tuple[type[Exception], ...] = (JobError, *connection_errors())
        pause, failures = _POLL_SECONDS, 0
        while True:
            try:
                asyncio.run(self._tail(job.id, output))
                job = self.get(job.id)
                if job.ended:
                    output.take(self.logs(job), 0)  # with what was printed after the connection's last message
                    return job
                pause, failures = _POLL_SECONDS, 0
            except (JobRefusedError, _WriteError):
                raise
            except lost as error:
                failures += 1
                ended = self._ended(job)
                if ended is not None and failures >= _ATTEMPTS_AT_AN_OLD_LOG:  # a log is lost with its node
                    say(f"the output of job {job.id} cannot be had any more ({first_line(str(error))})")
                    return ended
                say(f"the connection to {self.address} was lost ({first_line(str(error))}); the job goes on")
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            time.sleep(pause)

    def _ended(self, job: Job) -> Job | None:
        """The job where it is known to have ended."""
        with contextlib.suppress(JobError):
            now = self.get(job.id)
            return now if now.ended else None
        return None

    async def _tail(self, job_id: str, output: _Output) -> None:
        """Write a job's log until the connection ends or says nothing for a while."""
        seen = 0
        stream: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), _SILENCE_SECONDS)
            except (StopAsyncIteration, TimeoutError):
                return
            output.take(text, seen)
            seen += len(text)

    def _chain(self, job: Job) -> list[Job]:
        """The submissions of a job's chain, oldest first."""
        with self._explained():
            return self._described(chain(self._client.list_jobs(), job.origin))

    def _described(self, found: list[Any]) -> list[Job]:
        """Jobs out of Ray's details; the guardians know the runs of those that plain `ray job submit` sent."""
        silent = any(RUN not in (details.metadata or {}) and "launcher" in details.entrypoint for details in found)
        directories: dict[str, str] = {}
        if silent:
            try:
                directories = watched_directories(self.address)
            except connection_errors() as error:  # then such jobs have only their ids
                logger.debug("the guardians of %s cannot be listed: %s", self.address, error)
        return [describe(details, directories) for details in found]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what Ray's client raises into an error with a remedy."""
        try:
            yield
        except connection_errors() as error:
            text = str(error)
            raise (JobRefusedError if is_refusal(text) else JobError)(explanation(self.address, text)) from error


class _WriteError(Exception):
    """The output of this command cannot be written."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Output:
    """Writes a log that is sent again from its beginning after every cut, each character once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0

    def take(self, text: str, start: int) -> None:
        """Take the part of the log that begins at character `start`."""
        new = text[max(0, self._written - start) :]
        if new:
            try:
                self._write(new)
            except OSError as error:  # ours, not the connection's: whoever read our output has gone
                raise _WriteError(error) from error
            self._written += len(new)
