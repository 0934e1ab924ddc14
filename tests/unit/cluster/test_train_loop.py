from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cluster.batches import RankBatch
from cluster.collectives import Collectives
from cluster.engine import MicroBatch
from cluster.train_loop import Effects, Rhythm, train
from llm.loss import LossSums


class CountingEngine:
    """An engine whose loss is the number of updates made, and which writes down what is asked of it."""

    def __init__(self, diary: list[str]) -> None:
        self.updates = 0
        self._diary = diary

    def accumulate(self, batch: MicroBatch, scale: torch.Tensor) -> LossSums:
        return LossSums(torch.tensor(4.0 * self.updates), torch.tensor(4.0))

    def update(self, learning_rate: float) -> torch.Tensor:
        self.updates += 1
        self._diary.append(f"update at {learning_rate}")
        return torch.tensor(1.5)


def batches(last_step: int) -> Iterator[RankBatch]:
    nothing = torch.zeros(1, 4)
    part = MicroBatch(nothing, nothing, nothing, None)
    for step in range(1, last_step + 1):
        yield RankBatch(step, (part, part), 8.0, np.zeros(2, dtype=np.int64))


def run(last_step: int = 4, *, stop_at: int | None = None, **rhythm: Any) -> tuple[bool, list[str]]:
    diary: list[str] = []
    step = 0

    def observe(batch: RankBatch) -> None:
        nonlocal step
        step = batch.step

    settings = {"log_every_steps": 2, "evaluate_every_steps": 3, "checkpoint_every_steps": 2, **rhythm}
    finished = train(
        CountingEngine(diary),  # type: ignore[arg-type]
        batches(last_step),
        rhythm=Rhythm(last_step=last_step, **settings),
        learning_rate=lambda step: step / 10,
        collectives=Collectives(),
        effects=Effects(
            observe=observe,
            check_loss=lambda step, loss: diary.append(f"check {step} {loss}"),
            next_loss=lambda loss: diary.append(f"next loss {loss}"),
            log=lambda report: diary.append(f"log {report.step} {report.loss} {report.gradient_norm}"),
            evaluate=lambda step: diary.append(f"evaluate {step}"),
            save=lambda step: diary.append(f"save {step}"),
            stop_requested=lambda: step == stop_at,
        ),
        device="cpu",
    )
    return finished, diary


def test_step_does_everything_in_order() -> None:
    finished, diary = run()
    assert finished
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


def test_loop_saves_and_ends_when_a_stop_is_requested() -> None:
    finished, diary = run(stop_at=3)
    assert not finished
    assert diary[-1] == "save 3"


def test_loaded_state_is_not_updated_when_its_loss_is_refused() -> None:
    engine = CountingEngine([])

    def refuse(step: int, loss: float) -> None:
        raise RuntimeError("another loss")

    nothing = {name: (lambda *_: None) for name in ("observe", "next_loss", "log", "evaluate", "save")}
    with pytest.raises(RuntimeError, match="another loss"):
        train(
            engine,  # type: ignore[arg-type]
            batches(1),
            rhythm=Rhythm(last_step=1, log_every_steps=1, evaluate_every_steps=None, checkpoint_every_steps=1),
            learning_rate=lambda step: 0.1,
            collectives=Collectives(),
            effects=Effects(check_loss=refuse, stop_requested=lambda: False, **nothing),  # type: ignore[arg-type]
            device="cpu",
        )
    assert engine.updates == 0
