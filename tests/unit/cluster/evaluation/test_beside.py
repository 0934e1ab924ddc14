from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.config import CheckpointConfig, RunConfig, TrainConfig
from cluster.evaluation.beside import (
    DueCheckpoint,
    EvaluationQueue,
    Outcome,
    Recorded,
    is_due,
    kept_for_evaluation,
    outstanding,
)
from cluster.evaluation.config import EvaluationConfig
from data_pipeline.config import DataConfig


def due(step: int, *, attempt: int = 1, created: float = 0.0) -> DueCheckpoint:
    return DueCheckpoint(step=step, attempt=attempt, created_unix_seconds=created or float(step))


def run(*, max_steps: int = 100, every: int | None = 20, save: int = 10, beside: bool = True, **more: Any) -> RunConfig:
    return RunConfig(
        name="run",
        data=DataConfig(dataset="/data"),
        train=TrainConfig(max_steps=max_steps),
        checkpoint=CheckpointConfig(every_steps=save),
        evaluation=EvaluationConfig(every_steps=every, beside_training=beside, **more),
    )


def test_config_refuses_steps_without_a_checkpoint_when_evaluated_beside_the_training() -> None:
    message = "Make evaluation.every_steps a multiple of checkpoint.every_steps, or turn evaluation.beside_training off"
    with pytest.raises(ValueError, match=message):
        run(every=25)
    assert run(every=25, beside=False).evaluation.every_steps == 25


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"every": None}, "nothing would be evaluated"),
        ({"cpus_per_task": -0.5}, "cpus_per_task is -0.5"),
        ({"cpus_per_task": float("inf")}, "cpus_per_task is inf"),
        ({"gpus_per_task": 2}, "0 or 1 GPU"),
        ({"max_waiting": 0}, "max_waiting is 0"),
        ({"task_timeout_seconds": 0.0}, "task_timeout_seconds is 0.0"),
    ],
)
def test_config_refuses_what_an_evaluation_beside_the_training_cannot_be(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**more)


@pytest.mark.parametrize(("cpus", "threads"), [(0.0, 1), (0.5, 1), (1.0, 1), (2.9, 2), (8.0, 8)])
def test_task_has_as_many_threads_as_it_has_cores_and_one_at_least(cpus: float, threads: int) -> None:
    assert EvaluationConfig(cpus_per_task=cpus).threads_per_task == threads


def test_checkpoints_are_due_at_their_steps_and_at_the_last_when_beside_the_training() -> None:
    config = run(max_steps=50)
    assert [step for step in range(0, 51, 10) if is_due(config, step)] == [20, 40, 50]
    assert not any(is_due(run(beside=False), step) for step in range(0, 101, 10))


def left(
    step: int,
    published: Sequence[DueCheckpoint],
    *,
    noted: Sequence[DueCheckpoint] = (),
    lines: Sequence[tuple[str, str, int]] = (),
    given_up: Sequence[DueCheckpoint] = (),
    names: Sequence[str] = ("a",),
) -> tuple[list[int], list[int]]:
    recorded = Recorded(lines=set(lines), given_up=set(given_up))
    found = outstanding(run(), step=step, published=published, noted=noted, recorded=recorded, names=names)
    return [each.step for each in found.waiting], [each.step for each in found.lost]


def test_what_was_not_recorded_waits_when_an_attempt_continues() -> None:
    assert left(80, [due(60), due(40), due(70), due(80)], lines=[("eval", "a", 60)]) == ([40, 80], [])


def test_later_checkpoints_count_for_nothing_when_the_run_went_back() -> None:
    assert left(40, [due(40), due(60)], noted=[due(60), due(80)]) == ([40], [])


def test_evaluation_is_lost_when_its_checkpoint_is_gone() -> None:
    assert left(80, [due(80)], noted=[due(20), due(40), due(60)], lines=[("eval", "a", 20)], given_up=[due(60)]) == (
        [80],
        [40],
    )


def test_checkpoint_waits_again_when_what_failed_was_that_of_another_course() -> None:
    assert left(40, [due(40, attempt=3)], given_up=[due(40, attempt=1)]) == ([40], [])
    assert left(40, [due(40, attempt=3)], given_up=[due(40, attempt=3)]) == ([], [])


def test_evaluation_is_settled_only_when_every_dataset_has_its_line() -> None:
    assert left(20, [due(20)], lines=[("eval", "a", 20)], names=("a", "b")) == ([20], [])
    assert left(20, [due(20)], lines=[("eval", "a", 20), ("eval", "b", 20)], names=("a", "b")) == ([], [])


def test_evaluation_is_settled_by_a_text_when_there_is_no_dataset_to_measure() -> None:
    assert left(20, [due(20)], lines=[("eval", "a", 20)], names=()) == ([20], [])
    assert left(20, [due(20)], lines=[("sample", "prompt", 20)], names=()) == ([], [])


def test_events_and_lines_are_read_as_what_they_settle() -> None:
    rows = [{"kind": "train", "step": 1}, {"kind": "eval", "name": "a", "step": 20}, {"prompt": "by hand", "step": 3}]
    events = [
        {"event": "evaluation_failed", **due(40).as_dict(), "reason": "x"},
        {"event": "evaluation_lost", **due(60).as_dict(), "reason": "x"},
        {"event": "checkpoint_saved", "step": 80, "attempt": 1},
    ]
    recorded = Recorded.of(rows, events)
    assert recorded.lines == {("eval", "a", 20)}
    assert recorded.given_up == {due(40), due(60)}


def test_the_oldest_that_wait_are_kept_when_too_many_do() -> None:
    assert kept_for_evaluation([due(60), due(20), due(80), due(40)], 3) == {20, 40, 60}


def queue(*wanted: DueCheckpoint) -> EvaluationQueue:
    made = EvaluationQueue(in_flight=2, tries=2)
    made.want(1, wanted)
    return made


def taken(made: EvaluationQueue) -> list[int]:
    steps = []
    while (each := made.next()) is not None:
        steps.append(each.step)
    return steps


def test_oldest_run_first_and_no_more_than_allowed_when_many_are_wanted() -> None:
    made = queue(due(60), due(20), due(40))
    assert taken(made) == [20, 40]
    made.ended(Outcome(due=due(20)))
    assert taken(made) == [60]


def test_outcomes_come_in_the_order_of_the_steps_when_a_later_one_is_faster() -> None:
    made = queue(due(20), due(40))
    taken(made)
    made.ended(Outcome(due=due(40)))
    assert made.outcomes() == ()
    made.ended(Outcome(due=due(20)))
    assert [each.due.step for each in made.outcomes()] == [20, 40]
    made.want(1, [due(40)])
    assert [each.due.step for each in made.outcomes()] == [40]


def test_outcome_is_dropped_when_its_course_was_abandoned() -> None:
    made = queue(due(20), due(40))
    taken(made)
    made.want(2, [due(20)])
    assert made.abandoned() == {due(40)}
    made.ended(Outcome(due=due(40)))
    made.want(2, [due(20), due(40, attempt=2)])
    made.ended(Outcome(due=due(20)))
    assert [each.due for each in made.outcomes()] == [due(20)]
    assert made.next() == due(40, attempt=2)


def test_superseded_attempt_wants_nothing_when_it_is_heard_late() -> None:
    made = queue()
    made.want(3, [due(20)])
    made.want(2, [due(20), due(40)])
    assert taken(made) == [20]


def test_evaluation_is_tried_again_and_then_given_up_when_it_fails() -> None:
    made = queue(due(20))
    taken(made)
    assert made.failed(due(20), "broken") is None
    assert taken(made) == [20]
    outcome = made.failed(due(20), "broken")
    assert outcome is not None
    assert outcome.problem == "broken (tried 2 times)"
    assert made.outcomes() == (outcome,)
    assert taken(made) == []


def test_task_that_gave_way_is_begun_again_and_has_not_failed() -> None:
    made = queue(due(20))
    for _ in range(5):
        assert taken(made) == [20]
        made.gave_way(due(20))
    assert made.outcomes() == ()
