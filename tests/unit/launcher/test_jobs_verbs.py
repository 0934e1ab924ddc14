"""`longhaul jobs` and `longhaul submit`: what they print, and what they refuse before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from submissions import OUTPUT, job
from typer.testing import CliRunner

from cluster.jobs.api import Jobs
from cluster.jobs.job import Job, run_metadata
from launcher.cli import app
from launcher.commands.jobs import _listing

ADDRESS = ["--address", "http://head:8265"]


class KnownJobs(Jobs):
    """Jobs that no cluster is asked for."""

    def __init__(self, *known: Job) -> None:
        self.address = "http://head:8265"
        self.known = list(known)
        self.submitted: list[dict[str, Any]] = []

    def all(self) -> list[Job]:
        return self.known

    def _chain(self, job: Job) -> list[Job]:
        return [known for known in self.known if known.origin == job.origin]

    def submit(self, entrypoint: str, **arguments: Any) -> str:
        self.submitted.append({"entrypoint": entrypoint, **arguments})
        return str(arguments["submission_id"])


@pytest.fixture
def run() -> CliRunner:
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "80"})


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts known jobs in the place of a cluster's."""

    def put(*known: Job) -> KnownJobs:
        jobs = KnownJobs(*known)
        monkeypatch.setattr("cluster.jobs.api.Jobs", lambda address: jobs)
        return jobs

    return put


def lines_of(found: list[Job], width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(_listing(found))
    return [line.strip() for line in capture.get().splitlines()]


def test_listing_has_one_line_a_job_when_the_terminal_is_80_wide() -> None:
    found = [job("longhaul-long-a81a7b", "FAILED", -9), job("longhaul-long-a81a7b-again-1", "STOPPED")]
    _, _, _, first, second, *_ = lines_of(found, 80)
    assert first == "longhaul-long-a81a7b           long   failed (-9)   09-21 14:13   12 min 34 s"
    assert second == "longhaul-long-a81a7b-again-1   long   stopped       09-21 14:13   12 min 34 s"


@pytest.mark.parametrize("width", [60, 80])
def test_listing_folds_nothing_but_names_when_an_id_is_too_long(width: int) -> None:
    found = [job("longhaul-a-training-with-a-long-name-a81a7b-again-1", "FAILED", -9)]
    row = [line for line in lines_of(found, width)[3:] if line]
    assert max(map(len, row)) <= width
    assert row[0].endswith("long   failed (-9)   09-21 14:13   12 min 34 s")
    assert "".join(line.split()[0] for line in row) == found[0].id


def test_listing_folds_nothing_when_a_program_reads_it(run: CliRunner, offer: Any) -> None:
    identity = "longhaul-a-training-with-a-long-name-a81a7b-again-1"
    offer(job(identity, "RUNNING"))
    assert identity in run.invoke(app, ["jobs", "list", *ADDRESS]).stdout


def test_status_of_a_killed_driver_tells_the_signal_and_apart_from_it_what_it_printed_last(
    run: CliRunner, offer: Any
) -> None:
    first = job("first", "FAILED", -9, message=OUTPUT.format(-9) + "step 12/100  loss 5.1\n")
    offer(first, job("first-again-1", "RUNNING", longhaul_origin="first", longhaul_predecessor="first"))
    result = run.invoke(app, ["jobs", "status", "first", *ADDRESS])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-3:] == [
        "reason   the driver was killed by SIGKILL (exit code -9)",
        "printed  step 12/100  loss 5.1",
        "then     first-again-1 took its place",
    ]


def test_status_of_a_run_is_that_of_the_training_and_not_of_the_refused_duplicate(run: CliRunner, offer: Any) -> None:
    offer(job("first", "STOPPED"), job("duplicate", "FAILED", 75))
    result = run.invoke(app, ["jobs", "status", "long", *ADDRESS])
    assert "job      first\nstate    stopped\n" in result.stdout


def submit(run: CliRunner, tmp_path: Path, *settings: str, program: str = "longhaul") -> Any:
    arguments = ["submit", "pretrain", "smoke", "name=long", f"data.dataset={tmp_path}", *settings, "--detach"]
    return run.invoke(app, [*arguments, *ADDRESS], prog_name=program)


def test_submission_is_refused_before_the_upload_when_a_job_works_on_the_run(
    run: CliRunner, offer: Any, tmp_path: Path
) -> None:
    jobs = offer(job("first", "RUNNING"))
    result = submit(run, tmp_path, "storage=/shared")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: job first on http://head:8265 works on run 'long' already in /shared/long")
    assert jobs.submitted == []


def test_submission_goes_on_when_the_run_of_that_name_has_another_storage(
    run: CliRunner, offer: Any, tmp_path: Path
) -> None:
    jobs = offer(job("first", "RUNNING"))
    result = submit(run, tmp_path, "storage=/elsewhere", program="python -m launcher")
    assert result.exit_code == 0
    assert jobs.submitted[0]["metadata"] == run_metadata("/elsewhere/long")
    assert jobs.submitted[0]["entrypoint"] == "exec python -m launcher pretrain ./config.yaml"
    assert f"follow it with:  python -m launcher jobs logs {result.stdout.strip()} --follow" in result.stderr


def test_finetuning_is_submitted_by_its_own_verb(run: CliRunner, offer: Any, tmp_path: Path) -> None:
    jobs = offer()
    settings = ["name=long", f"data.dataset={tmp_path}", "storage=/shared", "--detach"]
    result = run.invoke(app, ["submit", "finetune", "dialogues", *settings, *ADDRESS])
    assert result.exit_code == 0, result.stderr
    assert jobs.submitted[0]["metadata"] == run_metadata("/shared/long", "finetune")
    assert jobs.submitted[0]["entrypoint"] == "exec python -m launcher finetune ./config.yaml"
