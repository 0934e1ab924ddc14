"""The Resume law on the real command: workers and drivers killed with SIGKILL, records compared bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import finish, kill, start, training_workers, wait_until
from wandb_files import history

from cluster.record import deterministic_fields, read_lines

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

STEPS = 100
CHECKPOINT_EVERY = 10


def command(storage: Path, dataset: Path) -> list[str]:
    return [
        "pretrain",
        "smoke",
        f"storage={storage}",
        f"data.dataset={dataset}",
        f"train.max_steps={STEPS}",
        "train.log_every_steps=1",
        f"checkpoint.every_steps={CHECKPOINT_EVERY}",
        "evaluation.every_steps=20",
        "wandb.mode=offline",
    ]


def record_of(storage: Path) -> list[dict[str, Any]]:
    return [deterministic_fields(row) for row in read_lines(storage / "smoke" / "metrics.jsonl")]


def events_of(storage: Path) -> list[str]:
    return [row["event"] for row in read_lines(storage / "smoke" / "events.jsonl")]


def logged_steps(storage: Path) -> int:
    return max((row["step"] for row in read_lines(storage / "smoke" / "metrics.jsonl")), default=0)


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    log = storage / "log"
    assert finish(start(*command(storage, dataset), log=log), log) == 0
    return storage


def assert_wandb_complete(storage: Path) -> None:
    """The newest offline directory alone holds loss and perplexity of every logged step."""
    newest = max((storage / "smoke" / "wandb").glob("offline-run-*/*.wandb"))
    rows = history(newest)
    logged = {row["train/step"]: row for row in rows if "train/loss" in row}
    for line in read_lines(storage / "smoke" / "metrics.jsonl"):
        if line["kind"] == "train":
            assert logged[line["step"]]["train/loss"] == line["train/loss"]
            assert logged[line["step"]]["train/perplexity"] == line["train/perplexity"]


def test_record_holds_every_step_once_when_undisturbed(undisturbed: Path) -> None:
    rows = record_of(undisturbed)
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, STEPS + 1))
    assert events_of(undisturbed)[0] == "started"
    assert events_of(undisturbed)[-1] == "finished"
    assert (undisturbed / "smoke" / "report.html").stat().st_size > 10_000
    assert_wandb_complete(undisturbed)


def test_finished_run_is_left_alone_when_commanded_again(undisturbed: Path, dataset: Path, tmp_path: Path) -> None:
    before = (undisturbed / "smoke" / "metrics.jsonl").read_bytes()
    log = tmp_path / "log"
    assert finish(start(*command(undisturbed, dataset), log=log), log) == 0
    assert (undisturbed / "smoke" / "metrics.jsonl").read_bytes() == before


def test_record_is_equal_when_a_worker_is_killed_and_then_the_command_during_a_save(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(*command(tmp_path, dataset), log=log)
    wait_until(lambda: logged_steps(tmp_path) >= 25, process)
    kill(training_workers(process.pid)[-1])  # the command must recover by itself

    fourth = tmp_path / "smoke" / "checkpoints" / "step-00000040"
    wait_until(lambda: fourth.exists() and any(fourth.glob("attempt-*/rank-*")), process)
    workers = training_workers(process.pid)
    kill(process.pid)  # and nothing else: whatever it started must end by itself
    process.wait()
    events = events_of(tmp_path)
    assert events.index("worker_lost") < events.index("resumed")

    assert finish(start(*command(tmp_path, dataset), log=log), log) == 0  # the same command must continue
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    assert record_of(tmp_path) == record_of(undisturbed)
    assert_wandb_complete(tmp_path)
    resumed = [row for row in read_lines(tmp_path / "smoke" / "events.jsonl") if row["event"] == "resumed"]
    assert 30 <= resumed[-1]["from_step"] < STEPS  # 30 or 40, or later where a busy machine delayed the kill
    assert json.loads((tmp_path / "smoke" / "run.json").read_bytes())["attempt"] == 3


@pytest.mark.slow
def test_record_is_equal_when_the_command_is_stopped(undisturbed: Path, dataset: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(*command(tmp_path, dataset), log=log)
    wait_until(lambda: logged_steps(tmp_path) >= 15, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    assert "The same command continues the run" in log.read_text()
    stopped = list(read_lines(tmp_path / "smoke" / "events.jsonl"))[-1]
    assert stopped["event"] == "stopped"
    assert stopped["step"] < STEPS
    assert finish(start(*command(tmp_path, dataset), log=log), log) == 0
    assert record_of(tmp_path) == record_of(undisturbed)
    resumed = next(row for row in read_lines(tmp_path / "smoke" / "events.jsonl") if row["event"] == "resumed")
    assert resumed["from_step"] == stopped["step"]
    assert_wandb_complete(tmp_path)
