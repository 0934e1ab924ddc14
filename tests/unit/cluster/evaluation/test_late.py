from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import CheckpointConfig, RunConfig
from cluster.evaluation import late as late_evaluations
from cluster.evaluation.beside import DueCheckpoint, Outcome, Outstanding, Recorded, Sample
from cluster.evaluation.config import EvaluationConfig
from cluster.evaluation.late import LateEffects, LateEvaluations
from data_pipeline.config import DataConfig


def due(step: int) -> DueCheckpoint:
    return DueCheckpoint(step=step, attempt=1, created_unix_seconds=float(step))


def outcome(step: int) -> Outcome:
    rows = tuple({"name": name, "eval/loss": 1.0, "eval/perplexity": 2.7} for name in ("a", "b"))
    return Outcome(due=due(step), rows=rows, samples=(Sample(name="(beginning)", prompt="", text="x"),))


class Run:
    """One attempt's late evaluations, what comes for them, and what they write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, waiting: list[int], **found: Any) -> None:
        self.now = 0.0
        self.come: list[Outcome] = []
        self.written: list[tuple[str, int]] = []
        self.told: list[list[int]] = []
        self.events: list[dict[str, Any]] = []
        self.said: list[str] = []
        lost = tuple(due(step) for step in found.pop("lost", ()))
        outstanding = Outstanding(waiting=tuple(map(due, waiting)), lost=lost)
        monkeypatch.setattr(
            late_evaluations, "read_outstanding", lambda *_, **__: (outstanding, Recorded(lines=found.pop("lines", ())))
        )
        monkeypatch.setattr(late_evaluations, "rest", self._rest)
        self.late = LateEvaluations(
            RunConfig(
                name="run",
                storage=str(Path("/nowhere")),
                data=DataConfig(dataset="/data"),
                checkpoint=CheckpointConfig(every_steps=20),
                evaluation=EvaluationConfig(every_steps=20, beside_training=True, task_timeout_seconds=30.0),
            ),
            [],
            attempt=2,
            step=100,
            effects=LateEffects(
                post=lambda message: self.told.append([each["step"] for each in message["wanted"]]),
                post_event=self.events.append,
                outcomes=lambda: self.come,
                write_row=lambda step, fields: self.written.append((fields["name"], step)),
                write_sample=lambda step, sample: self.written.append((sample.name, step)),
            ),
            clock=lambda: self.now,
        )

    def _rest(self) -> None:
        self.now += 0.2


def test_all_that_waits_is_told_again_and_again_until_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, [20, 40])
    run.late.take()
    assert run.told == [[20, 40]]
    run.now = 6.0
    run.late.take()
    assert run.told == [[20, 40], [20, 40]]
    run.come = [outcome(20)]
    run.late.take()
    assert run.told[2:] == [[40]]


def test_evaluation_is_written_once_with_the_datasets_last_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, [20])
    run.come = [outcome(20)]
    assert run.late.take()
    assert not run.late.take()
    assert run.written == [("(beginning)", 20), ("a", 20), ("b", 20)]


def test_rest_of_an_evaluation_is_written_when_a_kill_came_between_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, [20], lines={("sample", "(beginning)", 20), ("eval", "a", 20)})
    run.come = [outcome(20)]
    run.late.take()
    assert run.written == [("b", 20)]


def test_nothing_is_written_of_a_checkpoint_that_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, [40])
    run.come = [outcome(20)]
    assert not run.late.take()
    assert run.written == []


def test_lost_evaluations_are_told_when_an_attempt_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, [40], lost=[20])
    assert [(event["event"], event["step"]) for event in run.events] == [("evaluation_lost", 20)]


def test_end_waits_as_long_as_evaluations_come_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, [20, 40, 60])

    def busy() -> bool:
        run.come = [outcome(step) for step in (20, 40) if run.now > step]
        return False

    run.late.wait(busy, run.said.append)
    assert run.said == [
        "waiting for the evaluation of steps 20, 40, 60 beside the training",
        "waiting for the evaluation of steps 40, 60 beside the training",
        "waiting for the evaluation of step 60 beside the training",
    ]
    assert 70.0 < run.now < 72.0  # 30 s after that of step 40 came
    assert run.events == [
        {
            "event": "evaluation_missing",
            "steps": [60],
            "reason": "none came within 30 s; the same command makes them up from the checkpoints",
        }
    ]


def test_end_waits_no_longer_when_the_run_is_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, [20])
    run.late.wait(lambda: True, run.said.append)
    assert run.now == 0.0
    assert "the run was to end" in run.events[0]["reason"]


def test_failed_evaluation_is_waited_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, [20])
    run.come = [Outcome(due=due(20), problem="broken")]
    run.late.wait(lambda: False, run.said.append)
    assert (run.late.waiting, run.written, run.events) == ([], [], [])
