"""Evaluations beside the training as Ray tasks: against those in the training, with deaths in their midst, failing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt_alone
from processes import actors, finish, kill, start, training_workers, wait_until
from runs import STEPS, assert_wandb_complete, events_of, pretrain, record_of
from tiny import tiny_run

from cluster.checkpoint import list_checkpoints
from cluster.config import RunConfig
from cluster.evaluation.task import identity_of
from cluster.on_ray.evaluator import Evaluator

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

EVALUATION_TOLERANCE = 1e-5  # relative: one process adds up what two ranks added up before


def pretrain_beside(storage: Path, dataset: Path) -> list[str]:
    """The command of `pretrain`, evaluations made beside the training on the workers' cores."""
    return [*pretrain(storage, dataset), "evaluation.beside_training=true", "evaluation.cpus_per_task=0"]


def by_step(storage: Path, *kinds: str) -> list[dict[str, Any]]:
    """Lines of the kinds, in an order that does not depend on when evaluations came."""
    return sorted(
        (row for row in record_of(storage) if row["kind"] in kinds), key=lambda row: (row["step"], row["kind"])
    )


def evaluations_in_flight(pid: int) -> list[int]:
    """Process ids of evaluations that a command runs now."""
    return actors(pid, "evaluation-of")


@pytest.fixture(scope="module")
def beside(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage of a run that nothing happened to, evaluated beside its training."""
    storage = tmp_path_factory.mktemp("beside")
    log = storage / "log"
    assert finish(start(*pretrain_beside(storage, dataset), log=log), log, 400) == 0
    return storage


def test_record_is_complete_and_equal_when_evaluated_beside_the_training(beside: Path, undisturbed: Path) -> None:
    assert by_step(beside, "train") == by_step(undisturbed, "train")
    found, expected = by_step(beside, "eval"), by_step(undisturbed, "eval")
    assert [row["step"] for row in found] == list(range(20, STEPS + 1, 20))
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine["name"], mine["step"]) == (theirs["name"], theirs["step"])
        assert mine["eval/loss"] == pytest.approx(theirs["eval/loss"], rel=EVALUATION_TOLERANCE)
    assert_wandb_complete(beside)


def test_record_is_equal_when_worker_and_command_are_killed_while_an_evaluation_is_in_flight(
    beside: Path, dataset: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(*pretrain_beside(tmp_path, dataset), log=log)
    wait_until(lambda: evaluations_in_flight(process.pid), process, 400)
    kill(training_workers(process.pid)[-1])
    wait_until(lambda: "resumed" in events_of(tmp_path), process, 400)
    wait_until(lambda: evaluations_in_flight(process.pid), process, 400)
    kill(process.pid)
    process.wait()
    assert finish(start(*pretrain_beside(tmp_path, dataset), log=log), log, 400) == 0
    assert by_step(tmp_path, "train", "eval") == by_step(beside, "train", "eval")
    assert not {"evaluation_failed", "evaluation_lost", "evaluation_missing"} & set(events_of(tmp_path))
    assert_wandb_complete(tmp_path)


def test_record_is_equal_when_the_command_is_killed_while_it_waits_for_the_last_evaluation(
    beside: Path, dataset: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(*pretrain_beside(tmp_path, dataset), log=log)
    wait_until(lambda: "waiting for the evaluation of" in log.read_text(), process, 400)
    kill(process.pid)
    process.wait()
    again = tmp_path / "again"
    assert finish(start(*pretrain_beside(tmp_path, dataset), log=again), again, 400) == 0
    assert by_step(tmp_path, "train", "eval") == by_step(beside, "train", "eval")
    assert events_of(tmp_path)[-1] == "finished"


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A private Ray of this process."""
    from cluster.on_ray.ray_cluster import connect

    with connect(None):
        yield


@pytest.fixture
def trained(dataset: Path, tmp_path: Path) -> RunConfig:
    """A run with the checkpoints of steps 4, 8 and 12."""
    settings = {"evaluation__every_steps": 4, "evaluation__cpus_per_task": 0.5}
    attempt_alone(tiny_run(tmp_path, dataset, **settings))
    return tiny_run(tmp_path, dataset, **settings, evaluation__beside_training=True)


def evaluator(config: RunConfig, events: list[dict[str, Any]]) -> Evaluator:
    made = Evaluator(config, 0, write_event=events.append, left_out=frozenset)
    wanted = [identity_of(info).as_dict() for info in list_checkpoints(Path(config.storage) / config.name)]
    made.hear({"attempt": 1, "wanted": wanted})
    return made


def look_until(made: Evaluator, condition: Callable[[], object], timeout_seconds: float = 120) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        made.look()
        time.sleep(0.05)


@pytest.mark.usefixtures("ray_here")
def test_evaluations_are_begun_again_when_they_gave_way_to_workers(trained: RunConfig) -> None:
    made = evaluator(trained, [])
    look_until(made, lambda: evaluations_in_flight(os.getpid()))
    made.give_way()
    look_until(made, lambda: len(made.outcomes()) == 3)
    assert [outcome.due.step for outcome in made.outcomes()] == [4, 8, 12]
    assert all(outcome.rows and outcome.samples for outcome in made.outcomes())


@pytest.mark.usefixtures("ray_here")
def test_evaluation_is_given_up_with_an_event_when_its_checkpoint_is_damaged(trained: RunConfig) -> None:
    info = list_checkpoints(Path(trained.storage) / trained.name)[0]
    assert info.manifest is not None
    path = Path(str(info.directory)) / info.manifest.files[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    events: list[dict[str, Any]] = []
    made = evaluator(trained, events)
    look_until(made, lambda: len(made.outcomes()) == 3)
    (failed,) = events
    assert (failed["event"], failed["step"]) == ("evaluation_failed", 4)
    assert "was altered" in failed["reason"]
    assert "tried 3 times" in failed["reason"]


@pytest.mark.usefixtures("ray_here")
def test_evaluation_is_lost_with_an_event_when_its_step_has_another_checkpoint(trained: RunConfig) -> None:
    events: list[dict[str, Any]] = []
    made = evaluator(trained, events)
    made.hear({"attempt": 2, "wanted": [{"step": 8, "attempt": 7, "created_unix_seconds": 1.0}]})
    look_until(made, lambda: made.outcomes())
    assert [(event["event"], event["step"], event["attempt"]) for event in events] == [("evaluation_lost", 8, 7)]


@pytest.mark.usefixtures("ray_here")
def test_evaluation_is_given_up_when_it_takes_too_long(trained: RunConfig) -> None:
    events: list[dict[str, Any]] = []
    config = replace(trained, evaluation=replace(trained.evaluation, task_timeout_seconds=0.001))
    made = evaluator(config, events)
    look_until(made, lambda: len(made.outcomes()) == 3)
    assert {event["event"] for event in events} == {"evaluation_failed"}
    assert "longer at work than evaluation.task_timeout_seconds = 0.001" in events[0]["reason"]
