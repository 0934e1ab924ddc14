"""The Resume law on the real command: workers and drivers killed with SIGKILL, records compared bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from processes import actors, finish, kill, start, training_workers, wait_until
from runs import STEPS, assert_wandb_complete, event_rows, events_of, logged_steps, pretrain, record_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def test_record_holds_every_step_once_when_undisturbed(undisturbed: Path) -> None:
    rows = record_of(undisturbed)
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, STEPS + 1))
    assert events_of(undisturbed)[0] == "started"
    end = event_rows(undisturbed)[-1]
    assert end["event"] == "finished"
    assert min(end["time/evaluation_seconds"], end["time/checkpoint_seconds"]) > 0  # after the last line
    assert (undisturbed / "smoke" / "report.html").stat().st_size > 10_000
    assert_wandb_complete(undisturbed)


def test_finished_run_is_left_alone_when_commanded_again(undisturbed: Path, dataset: Path, tmp_path: Path) -> None:
    before = (undisturbed / "smoke" / "metrics.jsonl").read_bytes()
    log = tmp_path / "log"
    assert finish(start(*pretrain(undisturbed, dataset), log=log), log) == 0
    assert (undisturbed / "smoke" / "metrics.jsonl").read_bytes() == before


def test_record_is_equal_when_a_worker_is_killed_and_then_the_command_during_a_save(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(*pretrain(tmp_path, dataset), log=log)
    wait_until(lambda: logged_steps(tmp_path) >= 25, process)
    kill(training_workers(process.pid)[-1])  # the command must recover by itself

    fourth = tmp_path / "smoke" / "checkpoints" / "step-00000040"
    wait_until(lambda: fourth.exists() and any(fourth.glob("attempt-*/rank-*")), process)
    workers = training_workers(process.pid)
    kill(process.pid)  # and nothing else: whatever it started must end by itself
    process.wait()
    events = events_of(tmp_path)
    assert events.index("worker_lost") < events.index("resumed")

    assert finish(start(*pretrain(tmp_path, dataset), log=log), log) == 0  # the same command must continue
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    assert record_of(tmp_path) == record_of(undisturbed)
    assert_wandb_complete(tmp_path)
    resumed = [row for row in event_rows(tmp_path) if row["event"] == "resumed"]
    assert 30 <= resumed[-1]["from_step"] < STEPS  # 30 or 40, or later where a busy machine delayed the kill
    assert json.loads((tmp_path / "smoke" / "run.json").read_bytes())["attempt"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("actor", ["TrainController", "Mailbox"])
def test_record_is_equal_when_an_actor_beside_the_workers_is_killed(
    actor: str, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(*pretrain(tmp_path, dataset), log=log)
    wait_until(lambda: logged_steps(tmp_path) >= 25, process)
    (victim,) = actors(process.pid, actor)
    kill(victim)
    assert finish(process, log) == 0
    assert record_of(tmp_path) == record_of(undisturbed)


@pytest.mark.slow
def test_command_ends_at_once_when_it_is_stopped_before_the_workers_are_there(dataset: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(*pretrain(tmp_path, dataset), log=log)
    wait_until(lambda: "starting workers" in log.read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert "The same command continues the run" in log.read_text()
    assert events_of(tmp_path) == ["stopped"]


@pytest.mark.slow
def test_record_is_equal_when_the_command_is_stopped(undisturbed: Path, dataset: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(*pretrain(tmp_path, dataset), log=log)
    wait_until(lambda: logged_steps(tmp_path) >= 15, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    assert "The same command continues the run" in log.read_text()
    stopped = event_rows(tmp_path)[-1]
    assert stopped["event"] == "stopped"
    assert stopped["step"] < STEPS
    assert finish(start(*pretrain(tmp_path, dataset), log=log), log) == 0
    assert record_of(tmp_path) == record_of(undisturbed)
    resumed = next(row for row in event_rows(tmp_path) if row["event"] == "resumed")
    assert resumed["from_step"] == stopped["step"]
    assert_wandb_complete(tmp_path)
