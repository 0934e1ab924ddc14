"""The guardian: who is submitted again, and for how long."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.jobs.guardian import Charge, DeathTally, watch
from cluster.jobs.submission import ORIGIN, PREDECESSOR, chain, driver_was_killed

SIGKILL = -9


@dataclass
class Details:
    """What Ray says of a job."""

    submission_id: str
    status: JobStatus
    driver_exit_code: int | None = None
    entrypoint: str = "exec python -m launcher pretrain ./config.yaml"
    metadata: dict[str, str] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=lambda: {"working_dir": "gcs://package.zip"})
    start_time: int = 0


class Api:
    """A Jobs API whose submissions end as the script says."""

    def __init__(self, ends: list[tuple[JobStatus, int | None]], run: Path | None = None) -> None:
        self.ends = ends
        self.run = run
        self.jobs = [Details("first", *ends[0], metadata={"longhaul_run": "r", "job_submission_id": "first"})]

    def list_jobs(self) -> list[Details]:
        return [*self.jobs, Details("other", JobStatus.RUNNING)]

    def submit_job(self, **arguments: Any) -> str:
        number = len(self.jobs)
        if self.run is not None:
            (self.run / "run.json").write_text(json.dumps({"published_step": number}))
        self.jobs.append(
            Details(
                arguments["submission_id"],
                *self.ends[number],
                entrypoint=arguments["entrypoint"],
                metadata=arguments["metadata"],
                runtime_env=arguments["runtime_env"],
                start_time=number,
            )
        )
        return str(arguments["submission_id"])


def look_after(api: Api, tmp_path: Path) -> str:
    charge = Charge(origin="first", run_directory=str(tmp_path), dashboard_url="unused")
    return watch(api, charge, DeathTally(), sleep=lambda seconds: None)


@pytest.mark.parametrize(
    ("status", "code", "killed"),
    [
        ("FAILED", -9, True),
        ("FAILED", 137, True),  # under a shell
        ("FAILED", None, True),  # its supervisor died too, as with a lost node
        ("FAILED", 1, False),
        ("FAILED", 2, False),
        ("FAILED", 130, False),
        ("STOPPED", -9, False),
        ("SUCCEEDED", 0, False),
        ("RUNNING", None, False),
    ],
)
def test_driver_was_killed(status: str, code: int | None, killed: bool) -> None:
    assert driver_was_killed(status, code) is killed


def test_job_is_submitted_again_as_it_was_when_its_driver_was_killed(tmp_path: Path) -> None:
    api = Api([(JobStatus.FAILED, SIGKILL), (JobStatus.FAILED, SIGKILL), (JobStatus.SUCCEEDED, 0)], tmp_path)
    assert look_after(api, tmp_path) == "job first-again-2 ended: SUCCEEDED"
    _, second, third = api.jobs
    assert (second.entrypoint, second.runtime_env) == (api.jobs[0].entrypoint, api.jobs[0].runtime_env)
    assert second.metadata == {"longhaul_run": "r", ORIGIN: "first", PREDECESSOR: "first"}
    assert third.metadata[PREDECESSOR] == "first-again-1"


@pytest.mark.parametrize("end", [(JobStatus.STOPPED, None), (JobStatus.FAILED, 1), (JobStatus.SUCCEEDED, 0)])
def test_job_is_left_alone_when_it_ended_by_itself_or_was_stopped(
    end: tuple[JobStatus, int | None], tmp_path: Path
) -> None:
    api = Api([end])
    look_after(api, tmp_path)
    assert len(api.jobs) == 1


def test_job_is_given_up_when_its_driver_dies_again_and_again_without_a_checkpoint(tmp_path: Path) -> None:
    api = Api([(JobStatus.FAILED, SIGKILL)] * 9)
    assert look_after(api, tmp_path).endswith("died 3 times in a row without a new checkpoint")
    assert len(api.jobs) == 3


def test_job_is_not_given_up_when_checkpoints_come_between_the_deaths(tmp_path: Path) -> None:
    api = Api([*[(JobStatus.FAILED, SIGKILL)] * 8, (JobStatus.SUCCEEDED, 0)], tmp_path)
    look_after(api, tmp_path)
    assert len(api.jobs) == 9


def test_deaths_are_counted_on_when_the_jobs_api_fails_in_between(tmp_path: Path) -> None:
    tally = DeathTally()
    charge = Charge(origin="first", run_directory=str(tmp_path), dashboard_url="unused")
    api = Api([(JobStatus.FAILED, SIGKILL)] * 9)
    calls = iter(range(99))

    def fail_now_and_then(seconds: float) -> None:
        if next(calls) == 1:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        watch(api, charge, tally, sleep=fail_now_and_then)
    end = watch(api, charge, tally, sleep=fail_now_and_then)
    assert end.endswith("died 3 times in a row without a new checkpoint")
    assert len(api.jobs) == 3


def test_guardian_ends_when_its_job_was_deleted(tmp_path: Path) -> None:
    api = Api([(JobStatus.RUNNING, None)])
    api.jobs.clear()
    assert look_after(api, tmp_path) == "job first was deleted"


def test_number_of_a_submission_is_not_used_again_when_one_was_deleted(tmp_path: Path) -> None:
    api = Api([(JobStatus.FAILED, SIGKILL)] * 2 + [(JobStatus.SUCCEEDED, 0)])
    api.jobs.append(Details("first-again-7", *api.ends[1], metadata={ORIGIN: "first"}, start_time=1))
    look_after(api, tmp_path)
    assert api.jobs[-1].submission_id == "first-again-8"


def test_chain_is_ordered_by_time_and_holds_no_other_job(tmp_path: Path) -> None:
    api = Api([(JobStatus.FAILED, SIGKILL), (JobStatus.SUCCEEDED, 0)], tmp_path)
    look_after(api, tmp_path)
    assert [job.submission_id for job in chain(api.list_jobs(), "first")] == ["first", "first-again-1"]
