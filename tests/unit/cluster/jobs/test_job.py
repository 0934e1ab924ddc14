"""Jobs: results, reasons, and which one of many a name means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus
from submissions import OUTPUT, job

from cluster.errors import JobRefusedError
from cluster.jobs.job import Job, choose, describe, in_the_way

HEAD = "http://head:8265"


def dataset_build(identity: str, status: str = "SUCCEEDED") -> Job:
    return job(identity, status, directory=None, longhaul_run="long", longhaul_verb="data build")


STOPPED, REFUSED = job("first", "STOPPED"), job("duplicate", "FAILED", 75)


@pytest.mark.parametrize(
    ("ended", "result"),
    [
        (job(status="SUCCEEDED", exit_code=0), 0),
        (job(status="STOPPED"), 130),
        (job(status="FAILED", exit_code=2), 2),
        (job(status="FAILED", exit_code=-9), 1),
        (job(status="FAILED"), 1),
    ],
)
def test_result_is_what_the_training_ended_with(ended: Job, result: int) -> None:
    assert ended.result == result


@pytest.mark.parametrize(
    ("known", "meant"),
    [
        ([STOPPED, REFUSED], "first"),
        ([REFUSED], "duplicate"),
        ([STOPPED, job("second", "FAILED", 1)], "second"),
        ([job("first"), job("second", "FAILED", 1)], "first"),
        ([job("first"), dataset_build("built", "RUNNING")], "first"),
        ([STOPPED, dataset_build("built", "RUNNING")], "first"),
        ([dataset_build("built"), dataset_build("rebuilt")], "rebuilt"),
    ],
)
def test_name_means_the_training_that_had_the_run(known: list[Job], meant: str) -> None:
    assert choose(known, "long", HEAD)[0].id == meant


def test_namesakes_are_told_and_their_ids_mean_them() -> None:
    known = [dataset_build("old"), dataset_build("built"), STOPPED]
    chosen, others = choose(known, "long", HEAD)
    assert (chosen.id, [other.id for other in others]) == ("first", ["built"])
    assert choose(known, "built", HEAD) == (known[1], [])


def test_name_is_refused_when_two_trainings_at_work_have_it() -> None:
    known = [job("first"), job("second", directory="/other/long")]
    with pytest.raises(JobRefusedError) as caught:
        choose(known, "long", HEAD)
    assert str(caught.value) == (
        "several jobs on http://head:8265 work on a run called 'long': first in /shared/long, second in /other/long. "
        "Name one's id."
    )


def test_unknown_name_is_refused_with_the_jobs_at_work() -> None:
    with pytest.raises(
        JobRefusedError, match=r"no job 'smoke'.*The newest at work there: first \(long\), plain \(python -m lau"
    ):
        choose([job("first"), job("plain", directory=None), REFUSED], "smoke", HEAD)
    with pytest.raises(JobRefusedError, match=r"Nothing is at work there; the newest jobs: first\."):
        choose([STOPPED], "smoke", HEAD)


@pytest.mark.parametrize(
    ("other", "in_way"),
    [
        (job(), True),
        (job(status="PENDING", directory="/shared//long/"), True),
        (job(directory=None, longhaul_run="long", longhaul_verb="pretrain"), True),  # of an older version
        (job(directory="/elsewhere/long"), False),
        (job(directory="/shared/short"), False),
        (job(status="STOPPED"), False),
        (dataset_build("built", "RUNNING"), False),
    ],
)
def test_job_is_in_the_way_when_it_writes_the_same_run(other: Job, in_way: bool) -> None:
    assert in_the_way([STOPPED, other], "/shared/long") is (other if in_way else None)


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (job(status="STOPPED", message="was stopped"), None),
        (
            job(status="FAILED", exit_code=-9, message=OUTPUT.format(-9) + "step 7\n"),
            "the driver was killed by SIGKILL (exit code -9)",
        ),
        (job(status="FAILED", exit_code=143), "the driver was killed by SIGTERM (exit code 143)"),
        (
            job(status="FAILED", exit_code=2, message=OUTPUT.format(2) + "step 7\nerror: no room.\n- here\n\n"),
            "no room.\n- here",
        ),
        (job(status="FAILED", exit_code=1, message=OUTPUT.format(1) + "a\nKeyError: 'x'\n"), "KeyError: 'x'"),
        (job(status="FAILED", message="Job supervisor actor died: node lost"), "Job supervisor actor died: node lost"),
        (job(status="FAILED"), None),
    ],
)
def test_reason_of_a_failure_is_no_line_of_progress(ended: Job, reason: str | None) -> None:
    assert ended.reason == reason


def test_last_line_is_known_where_ray_kept_the_output() -> None:
    assert job(status="FAILED", exit_code=-9, message=OUTPUT.format(-9) + "step 7\n\n").last_line == "step 7"
    assert job(status="FAILED", message="Job supervisor actor died: node lost").last_line is None


def details(identity: str, metadata: dict[str, str] | None) -> Any:
    return SimpleNamespace(
        submission_id=identity,
        status=JobStatus.RUNNING,
        entrypoint="python -m launcher pretrain smoke",
        message=None,
        driver_exit_code=None,
        start_time=2000,
        end_time=None,
        metadata=metadata,
    )


def test_run_of_a_plain_job_is_what_its_guardian_says() -> None:
    directories = {"raysubmit_1": "/shared/smoke"}
    for plain in (details("raysubmit_1", None), details("again", {"longhaul_origin": "raysubmit_1"})):
        described = describe(plain, directories)
        assert (described.run, described.verb, described.directory) == ("smoke", "pretrain", "/shared/smoke")
    assert describe(details("raysubmit_2", None), directories).run is None
    assert describe(details("raysubmit_1", {"longhaul_run": "own"}), directories).run == "own"


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_plain_job_has_the_verb_of_its_command(verb: str) -> None:
    details = SimpleNamespace(
        submission_id="plain",
        status=JobStatus.RUNNING,
        entrypoint=f"python -m launcher {verb} chat.yaml",
        message=None,
        metadata={},
        driver_exit_code=None,
        start_time=None,
        end_time=None,
    )
    found = describe(details, {"plain": "/shared/long"})
    assert (found.verb, found.run) == (verb, "long")
    assert in_the_way([found], "/shared/long") == found
    assert choose([found, dataset_build("built", "RUNNING")], "long", HEAD)[0] == found
