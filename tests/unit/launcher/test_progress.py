"""The training view, rendered to a recorded console with a clock of our own."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console

from launcher.progress import TrainingProgress
from launcher.progress_lines import event_line

TOKENS_PER_STEP = 256


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100, highlight=False, markup=False)


def _train(step: int, max_steps: int = 100, loss: float | None = 4.0) -> dict[str, Any]:
    return {
        "type": "train",
        "step": step,
        "max_steps": max_steps,
        "max_tokens": max_steps * TOKENS_PER_STEP,
        "train/tokens": step * TOKENS_PER_STEP,
        "train/loss": loss,
        "train/perplexity": None if loss is None else 54.598,
        "speed/tokens_per_second": 12345.6,
    }


def _lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_plain_view_prints_a_line_per_phase_evaluation_and_event(console: Console, clock: Clock) -> None:
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        progress({"type": "phase", "text": "starting Ray"})
        progress({"type": "phase", "text": "starting Ray"})
        layout = {"world_size": 2, "zero_stage": 3, "precision": "fp32", "device": "cpu", "attention": "sdpa"}
        progress({"type": "event", "event": "resumed", "step": 40, "layout": layout})
        progress({"type": "eval", "step": 50, "name": "austen", "eval/loss": 4.25, "eval/perplexity": 70.105})
        progress({"type": "event", "event": "checkpoint_saved", "step": 50, "seconds": 0.1})
        progress({"type": "event", "event": "worker_lost", "step": 50, "causes": {"1": "Killed: rank 1\ntraceback"}})
        progress({"type": "event", "event": "checkpoint_rejected", "step": 50, "reason": "a file is damaged"})
        progress({"type": "event", "event": "samples_skipped", "step": 50, "first": 7, "last": 9})
        progress({"type": "event", "event": "finished", "step": 60, "time/evaluation_seconds": 2.5})
    assert _lines(console) == [
        "starting Ray",
        "step 40: continuing from the checkpoint of this step, 2 workers, ZeRO 3, fp32, cpu, sdpa",
        "step 50: validation perplexity 70.11 (loss 4.2500, austen)",
        "step 50: checkpoint saved",
        "step 50: a worker was lost (rank 1: Killed: rank 1)",
        "step 50: checkpoint rejected: a file is damaged",
        "step 50: samples skipped: first 7, last 9",
        "step 60: finished",
    ]


@pytest.mark.parametrize(
    ("causes", "line"),
    [
        ({}, "a worker was lost"),
        ({"0": "A: b", "2": "C: d"}, "a worker was lost (rank 0 and 1 other: A: b)"),
        (
            {
                "0": "RuntimeError: gone",
                "1": "CheckpointMismatchError: checkpoint x was rejected: its loss is another.",
            },
            "starting the workers again, without the rejected checkpoint",
        ),
    ],
)
def test_lost_worker_is_told_with_its_cause_and_a_rejection_only_once(
    causes: dict[str, str], line: str, console: Console, clock: Clock
) -> None:
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        progress({"type": "event", "event": "worker_lost", "causes": causes})
    assert _lines(console) == [line]


def test_loss_is_called_by_its_kind(console: Console, clock: Clock) -> None:
    lost = {"type": "event", "event": "worker_lost", "kind": "out_of_memory", "causes": {"1": "OutOfMemoryError: x"}}
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        progress(lost)
    assert _lines(console) == ["a worker ran out of memory (rank 1: OutOfMemoryError: x)"]


def test_plain_view_prints_steps_every_tenth_of_the_way_or_ten_seconds(console: Console, clock: Clock) -> None:
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        for step in range(1, 101):
            clock.seconds += 0.5
            progress(_train(step))
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in _lines(console)]
    assert shown == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]


def test_plain_view_prints_a_slow_training_every_ten_seconds(console: Console, clock: Clock) -> None:
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        for step in range(1, 6):
            clock.seconds += 6
            progress(_train(step, max_steps=100_000))
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in _lines(console)]
    assert shown == [1, 3, 5]


def test_plain_view_shows_figures_validation_and_time_left(console: Console, clock: Clock) -> None:
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        progress({"type": "eval", "step": 0, "name": "austen", "eval/loss": 8.0, "eval/perplexity": 2980.96})
        progress(_train(10, max_steps=1000))
        clock.seconds = 20
        progress(_train(20, max_steps=1000))
    assert _lines(console)[-1] == (
        "step 20/1,000  2.0 %  32:40 left  loss 4.0000  perplexity 54.60  12,346 tokens/s  validation 2,981"
    )


def test_plain_view_says_not_available_when_the_loss_is_not_finite(console: Console, clock: Clock) -> None:
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        progress(_train(1, loss=None))
    assert _lines(console) == ["step 1/100  1.0 %  loss n/a  perplexity n/a  12,346 tokens/s"]


def test_time_left_counts_tokens_when_later_steps_are_larger(console: Console, clock: Clock) -> None:
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        for step in (1, 2):
            progress({**_train(step), "max_tokens": 100 * TOKENS_PER_STEP + 50 * TOKENS_PER_STEP})
            clock.seconds += 20
    assert "49:20 left" in _lines(console)[-1]  # 148 times the tokens of a step that took 20 seconds


def test_time_left_counts_from_the_step_that_a_run_resumed_at(console: Console, clock: Clock) -> None:
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        progress(_train(80))
        clock.seconds = 30
        progress({"type": "event", "event": "resumed", "step": 40})
        progress(_train(41))
        clock.seconds = 50
        progress(_train(42))
    assert "19:20 left" in _lines(console)[-1]  # 58 steps at 20 seconds


def test_logs_show_our_own_news_and_the_warnings_of_others(console: Console, clock: Clock) -> None:
    def log(logger: str, level: int, text: str) -> dict[str, Any]:
        return {"type": "log", "logger": logger, "level": level, "rank": 1, "text": text}

    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        progress(log("cluster.attempt", logging.INFO, "attention auto is sdpa"))
        progress(log("DeepSpeed", logging.INFO, "chatter"))
        progress(log("DeepSpeed", logging.WARNING, "careful"))
    assert _lines(console) == ["attention auto is sdpa", "rank 1: careful"]


def test_live_view_draws_phase_bar_and_figures_and_leaves_the_last_ones(clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None, highlight=False)
    frame = Console(file=io.StringIO(), width=100, highlight=False)
    with TrainingProgress(console, interactive=True, clock=clock) as progress:
        progress({"type": "phase", "text": "starting workers"})
        frame.print(progress._render())
        assert "starting workers" in _lines(frame)[-1]
        progress(_train(50))
        frame.print(progress._render())
        bar, figures = _lines(frame)[-2:]
        assert "━" in bar
        assert "step 50/100  50.0 %" in bar
        assert figures.startswith("loss 4.0000  perplexity 54.60  12,346 tokens/s")
    assert "step 50/100  50.0 %  loss 4.0000" in _lines(console)[-1]


def test_unknown_message_is_refused(console: Console) -> None:
    with pytest.raises(ValueError, match="unknown type 'noise'"):
        TrainingProgress(console, interactive=False)({"type": "noise"})


def test_line_tells_the_load_of_the_busiest_expert_where_there_are_experts(console: Console, clock: Clock) -> None:
    with TrainingProgress(console, interactive=False, clock=clock) as progress:
        progress({**_train(1), "router/largest_load": 1.625, "router/smallest_load": 0.5})
        progress(_train(100))
    assert [line.partition("tokens/s")[2] for line in _lines(console)] == ["  busiest expert 1.62x", ""]


def test_a_beginning_says_whose_weights_it_has() -> None:
    weights = {"name": "austen", "step": 1200}
    message = {"event": "started", "step": 0, "initialized_from": weights, "layout": {"world_size": 2}}
    assert event_line(message).plain == "step 0: started with the weights of austen at step 1,200, 2 workers"
