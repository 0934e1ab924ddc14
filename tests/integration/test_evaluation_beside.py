"""Evaluations beside the training, without Ray: the record is that of evaluations in the training, only later."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from attempts import attempt_alone, kill_attempt, record_of
from beside import EvaluatingLink, attempt_beside, sorted_record
from tiny import SilentLink, tiny_run

from cluster.checkpoint import list_checkpoints
from cluster.config import RunConfig
from cluster.evaluation.late import evaluations_are_missing
from data_pipeline.dataset import Dataset

PUBLISHED_WITHIN_SECONDS = 60.0

EVALUATION_TOLERANCE = 1e-5  # relative: the sums are those of one process, in another order


def beside_run(storage: Path, dataset: Path, **changes: object) -> RunConfig:
    settings = {
        "evaluation__every_steps": 4,
        "evaluation__beside_training": True,
        "evaluation__task_timeout_seconds": 0.5,
    }
    return tiny_run(storage, dataset, **{**settings, **changes})


@pytest.fixture(scope="module")
def beside(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = beside_run(tmp_path_factory.mktemp("beside"), dataset)
    attempt_beside(config, EvaluatingLink(config))
    return config


def test_evaluations_are_those_of_the_training_when_made_beside_it(
    beside: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    inside = beside_run(tmp_path, dataset, evaluation__beside_training=False)
    attempt_alone(inside)
    found, expected = sorted_record(beside), sorted_record(inside)
    assert [row for row in found if row["kind"] != "eval"] == [row for row in expected if row["kind"] != "eval"]
    losses, wanted = (
        {row["step"]: row["eval/loss"] for row in rows if row["kind"] == "eval"} for rows in (found, expected)
    )
    assert sorted(losses) == [4, 8, 12]
    assert losses == pytest.approx(wanted, rel=EVALUATION_TOLERANCE)


def test_evaluations_are_recorded_in_the_course_of_the_training(beside: RunConfig) -> None:
    lines = [(row["kind"], row["step"]) for row in record_of(beside)]
    assert lines.index(("eval", 4)) < lines.index(("train", 12))


def test_checkpoints_wait_for_their_evaluation_and_go_then(dataset: Path, tmp_path: Path, beside: RunConfig) -> None:
    config = beside_run(tmp_path, dataset, checkpoint__keep_last=1)
    late = EvaluatingLink(config, delivers=lambda due: len(late_steps) > 0)
    late_steps: list[int] = []

    def observe(batch: object) -> None:
        if batch.step == 12:  # type: ignore[attr-defined]
            deadline = time.monotonic() + PUBLISHED_WITHIN_SECONDS
            while len(list_checkpoints(tmp_path / "tiny")) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)  # the thread that publishes may be behind on a busy machine
            assert [info.step for info in list_checkpoints(tmp_path / "tiny")] == [4, 8]
            late_steps.append(12)

    attempt_beside(config, late, observe)
    assert sorted_record(config) == sorted_record(beside)
    assert [info.step for info in list_checkpoints(tmp_path / "tiny")] == [12]
    assert any(message.get("text", "").startswith("waiting for the evaluation of step") for message in late.messages)


def test_evaluation_is_lost_with_an_event_when_too_many_wait(dataset: Path, tmp_path: Path) -> None:
    config = beside_run(tmp_path, dataset, checkpoint__keep_last=1, evaluation__max_waiting=1)
    link = EvaluatingLink(config, delivers=lambda due: False)
    attempt_beside(config, link)
    (missing,) = (event for event in link.events() if event["event"] == "evaluation_missing")
    assert missing["steps"] == [4, 8, 12]
    assert [info.step for info in list_checkpoints(tmp_path / "tiny")] == [4, 12]

    again = EvaluatingLink(config)
    attempt_beside(config, again)
    (lost,) = (event for event in again.events() if event["event"] == "evaluation_lost")
    assert lost["step"] == 8
    assert again.evaluated == [4, 12]


def test_missing_evaluations_are_made_up_when_killed_before_any_was_recorded(
    dataset: Path, tmp_path: Path, beside: RunConfig
) -> None:
    config = beside_run(tmp_path, dataset)
    kill_attempt(config, 11, published=8)  # nobody evaluates for it
    assert not [row for row in record_of(config) if row["kind"] == "eval"]
    link = EvaluatingLink(config)
    attempt_beside(config, link)
    assert sorted_record(config) == sorted_record(beside)


def test_finished_run_makes_up_what_is_missing_and_nothing_else(
    dataset: Path, tmp_path: Path, beside: RunConfig
) -> None:
    config, datasets = beside_run(tmp_path, dataset), [Dataset.open(dataset)]
    attempt_beside(config, EvaluatingLink(config, delivers=lambda due: due.step < 12))
    assert evaluations_are_missing(config, datasets)
    again = EvaluatingLink(config)
    attempt_beside(config, again)
    assert again.evaluated == [12]
    assert sorted_record(config) == sorted_record(beside)
    assert not evaluations_are_missing(config, datasets)


def test_training_ends_at_once_when_stopped_with_evaluations_missing(dataset: Path, tmp_path: Path) -> None:
    config = beside_run(tmp_path, dataset, evaluation__task_timeout_seconds=600.0)
    link = StoppedAtItsEnd(config)
    result = attempt_beside(config, link)
    assert (result.finished, result.regroup) == (True, False)
    assert [event["steps"] for event in link.events() if event["event"] == "evaluation_missing"] == [[4, 8, 12]]


def test_wait_at_the_end_counts_as_evaluation(dataset: Path, tmp_path: Path) -> None:
    config = beside_run(tmp_path, dataset)
    result = attempt_beside(config, EvaluatingLink(config, delivers=lambda due: False))
    assert result.spent.evaluation >= config.evaluation.task_timeout_seconds


class StoppedAtItsEnd(EvaluatingLink):
    """Wants the run to end after its last step."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config, delivers=lambda due: False)

    def stop_requested(self) -> bool:
        return self._steps() == 12


def test_nothing_is_wanted_when_evaluations_are_made_in_the_training(dataset: Path, tmp_path: Path) -> None:
    link = SilentLink()
    attempt_alone(tiny_run(tmp_path, dataset), link=link)
    assert not [message for message in link.messages if message["type"] == "evaluations_wanted"]
