from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from cluster import train_loop
from cluster.batches import RankBatch
from cluster.collectives import Collectives
from cluster.engines.protocol import MicroBatch
from cluster.train_loop import Effects, Ending, LoopEnd, Regroup, Rhythm, Spent, StepReport, Verdict, train
from llm.loss import LossSums

PARTS = 2
"""Micro-batches of each step."""


class CountingEngine:
    """An engine whose loss is the number of updates made, and which writes down what is asked of it."""

    def __init__(self, diary: list[str]) -> None:
        self.updates = 0
        self._diary = diary

    def begin_step(self, micro_batches: int) -> None:
        assert micro_batches == PARTS

    def accumulate(self, batch: MicroBatch, scale: torch.Tensor) -> LossSums:
        loss_sum = torch.tensor(4.0 * self.updates)
        return LossSums(loss_sum, loss_sum, torch.tensor(4.0), {})

    def update(self, learning_rate: float) -> torch.Tensor:
        self.updates += 1
        self._diary.append(f"update at {learning_rate}")
        return torch.tensor(1.5)

    def discard(self) -> None:
        self._diary.append("discard")


def batches(last_step: int, weight_sum: float = 8.0) -> Iterator[RankBatch]:
    nothing = torch.zeros(1, 4)
    part = MicroBatch(nothing, nothing, nothing, None)
    for step in range(1, last_step + 1):
        yield RankBatch(step, (part,) * PARTS, weight_sum, np.zeros(2, dtype=np.int64))


def run(
    last_step: int = 4,
    *,
    stop_at: int | None = None,
    regroup: tuple[int, Regroup] = (0, "no"),
    verdicts: Mapping[int, Verdict] = {},
    weight_sum: float = 8.0,
    **rhythm: Any,
) -> tuple[Ending, list[str]]:
    diary: list[str] = []
    step = 0

    def observe(batch: RankBatch) -> None:
        nonlocal step
        step = batch.step

    settings = {"log_every_steps": 2, "evaluate_every_steps": 3, "checkpoint_every_steps": 2, **rhythm}
    end = train(
        CountingEngine(diary),  # type: ignore[arg-type]
        batches(last_step, weight_sum),
        rhythm=Rhythm(last_step=last_step, **settings),
        learning_rate=lambda step: step / 10,
        collectives=Collectives(),
        effects=Effects(
            observe=observe,
            check_loss=lambda step, loss: diary.append(f"check {step} {loss}"),
            next_loss=lambda loss: diary.append(f"next loss {loss}"),
            judge_loss=lambda step, loss: verdicts.get(step, "go_on"),
            judge_gradients=lambda step, loss, norm: "go_on",
            log=lambda report: diary.append(f"log {report.step} {report.loss} {report.gradient_norm}"),
            evaluate=lambda step: diary.append(f"evaluate {step}"),
            record_evaluations=lambda: None,
            save=lambda step: diary.append(f"save {step}"),
            stop_requested=lambda: step == stop_at,
            regroup_requested=lambda: regroup[1] if step >= regroup[0] else "no",
            compilation_seconds=lambda: 0.0,
        ),
        device="cpu",
    )
    return end.ending, diary


def test_step_does_everything_in_order() -> None:
    ending, diary = run()
    assert ending == "finished"
    assert diary == [
        "check 1 0.0",
        "update at 0.1",
        "log 1 0.0 1.5",
        "update at 0.2",
        "log 2 1.0 1.5",
        "save 2",
        "next loss 2.0",
        "update at 0.3",
        "evaluate 3",
        "update at 0.4",
        "log 4 3.0 1.5",
        "evaluate 4",
        "save 4",
    ]


@pytest.mark.parametrize(("weight_sum", "loss"), [(8.0, 1.0), (0.5, 16.0), (0.0, 8.0)])
def test_loss_is_the_mean_when_the_weights_sum_to_less_than_one(weight_sum: float, loss: float) -> None:
    _, diary = run(2, weight_sum=weight_sum)  # the second step's parts have losses of 4 each
    assert f"log 2 {loss} 1.5" in diary


def test_loop_saves_and_ends_when_a_stop_is_requested() -> None:
    ending, diary = run(stop_at=3)
    assert ending == "stopped"
    assert diary[-1] == "save 3"


def test_loop_goes_on_to_the_next_checkpoint_when_workers_are_to_be_others() -> None:
    ending, diary = run(6, regroup=(3, "at_checkpoint"))
    assert ending == "regroup"
    assert diary[-1] == "save 4"


def test_loop_saves_and_ends_when_workers_are_to_be_others_now() -> None:
    ending, diary = run(6, regroup=(3, "now"))
    assert ending == "regroup"
    assert diary[-1] == "save 3"


def test_last_step_finishes_the_run_when_workers_are_to_be_others() -> None:
    assert run(4, regroup=(4, "now"))[0] == "finished"
    assert run(4, stop_at=4)[0] == "finished"


def test_update_is_left_out_and_step_made_when_its_loss_is_unsound() -> None:
    ending, diary = run(2, verdicts={1: "skip"}, evaluate_every_steps=None)
    assert ending == "finished"
    assert diary == ["check 1 0.0", "discard", "log 1 0.0 None", "update at 0.2", "log 2 0.0 1.5", "save 2"]


def test_loop_ends_without_saving_when_an_earlier_state_is_wanted() -> None:
    ending, diary = run(4, verdicts={3: "rollback"})
    assert ending == "rollback"
    assert diary[-2:] == ["next loss 2.0", "discard"]


def test_loaded_state_is_not_updated_when_its_loss_is_refused() -> None:
    engine = CountingEngine([])

    def refuse(step: int, loss: float) -> None:
        raise RuntimeError("another loss")

    nothing = {
        name: (lambda *_: None) for name in ("observe", "next_loss", "log", "evaluate", "record_evaluations", "save")
    }
    with pytest.raises(RuntimeError, match="another loss"):
        train(
            engine,  # type: ignore[arg-type]
            batches(1),
            rhythm=Rhythm(last_step=1, log_every_steps=1, evaluate_every_steps=None, checkpoint_every_steps=1),
            learning_rate=lambda step: 0.1,
            collectives=Collectives(),
            effects=Effects(
                check_loss=refuse,
                judge_loss=lambda step, loss: "go_on",
                judge_gradients=lambda step, loss, norm: "go_on",
                stop_requested=lambda: False,
                regroup_requested=lambda: "no",
                compilation_seconds=lambda: 0.0,
                **nothing,  # type: ignore[arg-type]
            ),
            device="cpu",
        )
    assert engine.updates == 0


class Clock:
    """Stands still but for what is told to take time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.compiled = 0.0
        """Seconds of it that torch compiled for, as torch says."""

    def perf_counter(self) -> float:
        return self.now

    def passes(self, seconds: float, *, compiling: float = 0.0) -> None:
        self.now += seconds
        self.compiled += compiling


def timed_end(
    monkeypatch: pytest.MonkeyPatch,
    last_step: int,
    *,
    stop_at: int | None = None,
    compiling: Mapping[str, float] = {},
    reports: list[StepReport] | None = None,
) -> LoopEnd:
    """A run that logs every second step; a step takes 1 s, an evaluation 5 s, a save 3 s.

    `compiling` says for how long of that torch compiled, in the step or evaluation of that name.
    """
    clock = Clock()
    monkeypatch.setattr(train_loop, "time", clock)
    nothing = {name: (lambda *_: None) for name in ("observe", "check_loss", "next_loss", "record_evaluations")}
    steps: list[int] = []

    def learning_rate(step: int) -> float:
        steps.append(step)
        clock.passes(1.0, compiling=compiling.get(f"step {step}", 0.0))
        return 0.1

    return train(
        CountingEngine([]),  # type: ignore[arg-type]
        batches(last_step),
        rhythm=Rhythm(last_step=last_step, log_every_steps=2, evaluate_every_steps=4, checkpoint_every_steps=4),
        learning_rate=learning_rate,
        collectives=Collectives(),
        effects=Effects(
            judge_loss=lambda step, loss: "go_on",
            judge_gradients=lambda step, loss, norm: "go_on",
            log=lambda report: None if reports is None else reports.append(report),
            evaluate=lambda step: clock.passes(5.0, compiling=compiling.get(f"evaluation {step}", 0.0)),
            save=lambda step: clock.passes(3.0),
            stop_requested=lambda: len(steps) + 1 == stop_at,
            regroup_requested=lambda: "no",
            compilation_seconds=lambda: clock.compiled,
            **nothing,  # type: ignore[arg-type]
        ),
        device="cpu",
    )


def test_end_says_what_took_the_time_after_the_last_report_when_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timed_end(monkeypatch, 4).spent == Spent(evaluation=5.0, checkpoint=3.0)


def test_end_holds_the_steps_after_the_last_report_when_stopped_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timed_end(monkeypatch, 8, stop_at=3).spent == Spent(training=1.0, checkpoint=3.0)


def test_compilation_is_told_apart_from_what_it_was_needed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[StepReport] = []
    compiling = {"step 1": 0.75, "step 3": 0.5, "evaluation 4": 2.0}
    end = timed_end(monkeypatch, 4, compiling=compiling, reports=reports)
    assert [report.spent for report in reports] == [
        Spent(training=0.25, compilation=0.75),
        Spent(training=1.0),
        Spent(training=1.5, compilation=0.5),
    ]
    assert end.spent == Spent(evaluation=3.0, compilation=2.0, checkpoint=3.0)


@pytest.mark.parametrize(("said", "taken"), [(3600.0, 1.0), (-3600.0, 0.0)])
def test_parts_keep_to_the_time_that_passed_when_the_clock_of_the_compiler_was_set(
    monkeypatch: pytest.MonkeyPatch, said: float, taken: float
) -> None:
    end = timed_end(monkeypatch, 8, stop_at=3, compiling={"step 3": said})
    assert end.spent == Spent(training=1.0 - taken, compilation=taken, checkpoint=3.0)
