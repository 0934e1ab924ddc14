from __future__ import annotations

import math
from pathlib import Path

import pytest

from cluster.record import EventsLog, MetricsLog, jsonable, perplexity, read_lines


def clock() -> float:
    return 1000.0


def write_steps(directory: Path, steps: range) -> None:
    log = MetricsLog(directory, attempt=1, after_step=0, clock=clock)
    for step in steps:
        log.write("train", step, {"train/loss": float(step)})
    log.close()


def test_metrics_log_drops_steps_after_the_checkpoint_when_reopened(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 6))
    MetricsLog(tmp_path, attempt=2, after_step=3, clock=clock).close()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [row["step"] for row in read_lines(tmp_path / "discarded.jsonl")] == [4, 5]


def test_metrics_log_drops_a_torn_tail_when_reopened(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "st')
    log = MetricsLog(tmp_path, attempt=2, after_step=9, clock=clock)
    log.write("train", 3, {})
    log.close()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_metrics_log_refuses_a_line_when_the_step_is_there(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 3))
    log = MetricsLog(tmp_path, attempt=2, after_step=2, clock=clock)
    with pytest.raises(ValueError, match="each step is logged once"):
        log.write("train", 2, {})


def test_metrics_log_of_a_dead_process_writes_into_nothing_when_reopened(tmp_path: Path) -> None:
    orphan = MetricsLog(tmp_path, attempt=1, after_step=0, clock=clock)
    orphan.write("train", 1, {})
    log = MetricsLog(tmp_path, attempt=2, after_step=1, clock=clock)
    orphan.write("train", 2, {"train/loss": -1.0})
    log.write("train", 2, {"train/loss": 2.0})
    assert [row.get("train/loss") for row in read_lines(tmp_path / "metrics.jsonl")] == [None, 2.0]


def test_jsonable_names_numbers_when_they_are_not_finite() -> None:
    assert jsonable({"a": math.nan, "b": math.inf, "c": 1.0}) == {
        "a": None,
        "b": None,
        "c": 1.0,
        "nonfinite": ["a", "b"],
    }


def test_events_log_closes_a_torn_tail_when_reopened(tmp_path: Path) -> None:
    EventsLog(tmp_path, clock=clock).write("started", step=0)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "chec')
    EventsLog(tmp_path, clock=clock).write("finished", step=3)
    assert [row["event"] for row in read_lines(tmp_path / "events.jsonl")] == ["started", "finished"]


def test_perplexity_is_infinite_when_exp_overflows() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e4) == math.inf
