"""The Ray Jobs API as people need it: errors with a remedy, logs through dropped connections, the true result."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import JobError, JobRefusedError
from cluster.submission import ORIGIN, PREDECESSOR, RUN, VERB, chain, driver_was_killed

logger = logging.getLogger(__name__)

STOP_GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Environment variable of a job: seconds between SIGTERM and SIGKILL when it is stopped; Ray's default is 3."""
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers that tell of every upload and connection."""
_TOKEN_REFUSED = ("Authentication required", "Authentication failed", "status code 401", "status code 403")
"""Marks of Ray's errors when a cluster asks for a token or does not accept the one it got."""
_NO_AGENT = "No available agent to submit job"
_AGENT_SECONDS = 60.0
_POLL_SECONDS = 1.0
_SILENCE_SECONDS = 60.0
"""A log connection that said nothing for so long is made anew: a cut one may look alive for ever."""
_LONGEST_PAUSE_SECONDS = 30.0
_SUCCESSOR_SECONDS = 60.0
"""How long the guardian of a killed driver is given to submit the job again."""


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
        """Name of the run that it trains."""
        return self.metadata.get(RUN)

    @property
    def verb(self) -> str | None:
        """What it does."""
        return self.metadata.get(VERB)

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
    def result(self) -> int:
        """Exit code for the shell of the person who waits."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 130
        return self.exit_code if self.exit_code is not None and self.exit_code > 0 else 1


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
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.start_unix_seconds or 0.0)

    def get(self, reference: str) -> Job:
        """A job by its submission id, or by the name of its run: the one that is at work, else the newest.

        Raises:
            JobRefusedError: There is none, or several of that name are at work.
        """
        known = self.all()
        for job in known:
            if job.id == reference:
                return job
        of_run = [job for job in known if job.run == reference]
        at_work = [job for job in of_run if not job.ended]
        if len(at_work) > 1:
            raise JobRefusedError(
                f"several jobs on {self.address} work on a run called {reference!r}: "
                f"{', '.join(job.id for job in at_work)}. Name one of them."
            )
        if of_run:
            return at_work[0] if at_work else of_run[-1]
        names = ", ".join(job.id for job in known[-5:]) or "none at all"
        raise JobRefusedError(
            f"there is no job {reference!r} on {self.address}: no submission id and no name of a run. The newest jobs "
            f"there: {names}. `longhaul jobs list` shows all."
        )

    def newest_of_chain(self, job: Job) -> Job:
        """The last submission of the chain that a job belongs to."""
        with self._explained():
            details = chain(self._client.list_jobs(), job.origin)
        return _job(details[-1]) if details else job

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
        """The submission that a guardian makes after a driver was killed; None where none comes."""
        deadline = time.monotonic() + _SUCCESSOR_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(JobError):
                newest = self.newest_of_chain(job)
                if newest.id != job.id:
                    return newest
            time.sleep(_POLL_SECONDS)
        return None

    def _follow_one(self, job: Job, write: Callable[[str], None], say: Callable[[str], None]) -> Job:
        output = _Output(write)
        lost: tuple[type[Exception], ...] = (JobError, *_connection_errors())
        pause = _POLL_SECONDS
        while True:
            try:
                asyncio.run(self._tail(job.id, output))
                job = self.get(job.id)
                if job.ended:
                    output.take(self.logs(job), 0)  # with what was printed after the connection's last message
                    return job
                pause = _POLL_SECONDS
            except (JobRefusedError, _WriteError):
                raise
            except lost as error:
                say(f"the connection to {self.address} was lost ({_first_line(str(error))}); the job goes on")
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            time.sleep(pause)

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

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what Ray's client raises into an error with a remedy."""
        try:
            yield
        except _connection_errors() as error:
            text = str(error)
            refused = any(mark in text for mark in (*_TOKEN_REFUSED, "status code 404"))
            raise (JobRefusedError if refused else JobError)(_explanation(self.address, text)) from error


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


def _connection_errors() -> tuple[type[Exception], ...]:
    import aiohttp
    import requests
    from ray.exceptions import RayError

    return (RuntimeError, ValueError, OSError, RayError, requests.exceptions.RequestException, aiohttp.ClientError)


def _explanation(address: str, text: str) -> str:
    if any(mark in text for mark in _TOKEN_REFUSED):
        return (
            f"the cluster at {address} asks for a token, and did not accept this command's: {_first_line(text)}. Put "
            "the cluster's token into ~/.ray/auth_token (or name its file in RAY_AUTH_TOKEN_PATH) and set "
            "RAY_AUTH_MODE=token."
        )
    if "status code 413" in text:
        return f"the cluster at {address} refuses the working directory as too large: {_first_line(text)}."
    if "onnect" in text:
        return (
            f"the cluster at {address} does not answer: {_first_line(text)}. Check the address and port of the head's "
            "dashboard, and that it listens there (`ray start --head --dashboard-host=0.0.0.0`)."
        )
    return f"the cluster at {address} refused the request: {_first_line(text)}"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".")[:500] if text.strip() else "no reason given"


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=details.status.value,
        entrypoint=details.entrypoint,
        message=details.message or "",
        exit_code=details.driver_exit_code,
        start_unix_seconds=details.start_time / 1000 if details.start_time else None,
        end_unix_seconds=details.end_time / 1000 if details.end_time else None,
        metadata=dict(details.metadata or {}),
    )
