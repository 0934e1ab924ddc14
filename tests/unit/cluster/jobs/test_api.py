"""Jobs: logs that are written once, chains that are followed, and submissions that are refused."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.errors import JobRefusedError
from cluster.jobs.api import Jobs, _Output, _WriteError
from cluster.jobs.job import run_metadata
from cluster.jobs.submission import ORIGIN, PREDECESSOR


@dataclass
class Details:
    """What Ray says of a job."""

    submission_id: str
    status: JobStatus
    driver_exit_code: int | None
    metadata: dict[str, str] | None
    start_time: int
    entrypoint: str = "exec python -m launcher pretrain ./config.yaml"
    message: str = ""
    end_time: int | None = None


class Client:
    """A Jobs API whose jobs have printed their ids, and nothing where their nodes are lost."""

    def __init__(self, *jobs: Details, lost: tuple[str, ...] = ()) -> None:
        self.jobs = list(jobs)
        self.lost = lost
        self.submitted = 0

    def list_jobs(self) -> list[Details]:
        return self.jobs

    def get_job_logs(self, identity: str) -> str:
        if identity in self.lost:
            raise RuntimeError("no agent")
        return f"{identity}\n"

    async def tail_job_logs(self, identity: str) -> AsyncIterator[str]:
        yield self.get_job_logs(identity)

    def submit_job(self, **arguments: Any) -> str:
        self.submitted += 1
        return str(arguments["submission_id"])


class OfferedJobs(Jobs):
    """Jobs of a client that is there already."""

    def __init__(self, client: Client) -> None:
        self.address = "http://head:8265"
        self._client = client


def chain_of(*ends: tuple[JobStatus, int | None]) -> list[Details]:
    """A first submission and those that took its place."""
    names = ["first", *(f"first-again-{number}" for number in range(1, len(ends)))]
    found = [Details("first", *ends[0], run_metadata("/shared/long"), 0)]
    for number, (before, name) in enumerate(itertools.pairwise(names), start=1):
        links = {ORIGIN: "first", PREDECESSOR: before}
        found.append(Details(name, *ends[number], {**run_metadata("/shared/long"), **links}, number))
    return found


KILLED = (JobStatus.FAILED, -9)
DONE = (JobStatus.SUCCEEDED, 0)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for jobs that have ended."""
    monkeypatch.setattr("cluster.jobs.api._POLL_SECONDS", 0.0)


def test_log_is_written_once_when_it_is_sent_again_from_its_beginning() -> None:
    written: list[str] = []
    output = _Output(written.append)
    output.take("one ", 0)
    output.take("two ", 4)
    output.take("one two th", 0)  # after a cut
    output.take("ree", 10)
    output.take("one ", 0)  # after another, shorter than what is known
    output.take("two three four", 4)
    assert "".join(written) == "one two three four"


def test_output_that_cannot_be_written_is_no_lost_connection() -> None:
    def gone(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(_WriteError):
        _Output(gone).take("text", 0)


def test_chain_is_followed_member_by_member_when_its_first_is_named() -> None:
    jobs = OfferedJobs(Client(*chain_of(KILLED, KILLED, DONE)))
    written: list[str] = []
    said: list[str] = []
    assert jobs.follow(jobs.get("first"), written.append, said.append).id == "first-again-2"
    assert written == ["first\n", "first-again-1\n", "first-again-2\n"]
    assert [text for text in said if "continues the run" in text] == [
        "job first-again-1 continues the run",
        "job first-again-2 continues the run",
    ]


def test_following_goes_on_when_the_output_of_a_dead_member_is_lost() -> None:
    jobs = OfferedJobs(Client(*chain_of(KILLED, KILLED, DONE), lost=("first-again-1",)))
    written: list[str] = []
    said: list[str] = []
    assert jobs.follow(jobs.get("first"), written.append, said.append).id == "first-again-2"
    assert written == ["first\n", "first-again-2\n"]
    assert any(text.startswith("the output of job first-again-1 cannot be had any more") for text in said)


def test_neighbours_in_a_chain_are_known() -> None:
    jobs = OfferedJobs(Client(*chain_of(KILLED, KILLED, DONE)))
    first = jobs.get("first")
    following, newest = jobs.next_of_chain(first), jobs.newest_of_chain(first)
    assert (following and following.id, newest.id) == ("first-again-1", "first-again-2")
    assert jobs.next_of_chain(newest) is None


def test_name_tells_of_its_namesakes() -> None:
    build = Details("built", *DONE, {"longhaul_run": "long", "longhaul_verb": "data build"}, 9)
    said: list[str] = []
    assert OfferedJobs(Client(*chain_of(DONE), build)).get("long", said.append).id == "first"
    assert said == ["first is meant; job built (data build) has the same name, and only its id means it"]


def test_run_that_a_job_works_on_is_not_free() -> None:
    jobs = OfferedJobs(Client(*chain_of((JobStatus.RUNNING, None))))
    jobs.require_free("/elsewhere/long")
    with pytest.raises(JobRefusedError) as caught:
        jobs.require_free("/shared/long")
    assert str(caught.value) == (
        "job first on http://head:8265 works on run 'long' already in /shared/long (running), and two drivers cannot "
        "write one run. Nothing was submitted. Follow it with `longhaul jobs logs first --follow`, stop it with "
        "`longhaul jobs stop first`, or give this run another name with name=NAME."
    )


def test_jobs_are_listed_when_the_guardians_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str) -> dict[str, str]:
        raise RuntimeError("no such API")

    plain = Details("raysubmit_1", JobStatus.RUNNING, None, None, 0, "python -m launcher pretrain smoke")
    jobs = OfferedJobs(Client(plain))
    monkeypatch.setattr("cluster.jobs.api.watched_directories", refuse)
    assert [(job.id, job.run) for job in jobs.all()] == [("raysubmit_1", None)]
    monkeypatch.setattr("cluster.jobs.api.watched_directories", lambda address: {"raysubmit_1": "/shared/smoke"})
    assert jobs.get("smoke").id == "raysubmit_1"
