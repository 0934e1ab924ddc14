from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest

from cluster.errors import StorageError
from cluster.record.logs import METRICS_NAME, EventsLog, LogTail, StepLog, jsonable, perplexity, read_lines


def clock() -> float:
    return 1000.0


def write_steps(directory: Path, steps: range) -> None:
    log = StepLog(directory / METRICS_NAME, attempt=1, after_step=0, clock=clock)
    for step in steps:
        log.write("train", step, {"train/loss": float(step)})
    log.close()


def test_step_log_drops_steps_after_the_checkpoint_when_reopened(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 6))
    StepLog(tmp_path / METRICS_NAME, attempt=2, after_step=3, clock=clock).close()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [row["step"] for row in read_lines(tmp_path / "discarded.jsonl")] == [4, 5]


def test_step_log_drops_a_torn_tail_when_reopened(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "st')
    log = StepLog(tmp_path / METRICS_NAME, attempt=2, after_step=9, clock=clock)
    log.write("train", 3, {})
    log.close()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_step_log_refuses_a_line_when_the_step_is_there(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 3))
    log = StepLog(tmp_path / METRICS_NAME, attempt=2, after_step=2, clock=clock)
    with pytest.raises(ValueError, match="each step is logged once"):
        log.write("train", 2, {})


def test_step_log_of_a_dead_process_writes_into_nothing_when_reopened(tmp_path: Path) -> None:
    orphan = StepLog(tmp_path / METRICS_NAME, attempt=1, after_step=0, clock=clock)
    orphan.write("train", 1, {})
    log = StepLog(tmp_path / METRICS_NAME, attempt=2, after_step=1, clock=clock)
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


def test_metrics_wait_in_memory_when_the_storage_is_full_and_keep_a_checkpoint_from_being_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = StepLog(tmp_path / METRICS_NAME, attempt=1, after_step=0, clock=clock)
    log.write("train", 1, {})
    whole_write = os.write

    def short_then_full(descriptor: int, data: bytes) -> int:
        if len(data) > 10:
            return whole_write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", lambda descriptor, data: short_then_full(descriptor, data[:15]))
    log.write("train", 2, {})
    with pytest.raises(OSError, match="No space left"):
        log.sync()
    monkeypatch.undo()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1]
    log.write("train", 3, {})
    log.close()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_discarded_lines_are_kept_once_when_the_rewrite_is_killed_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_steps(tmp_path, range(1, 4))

    def killed(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.record.file_log.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        StepLog(tmp_path / METRICS_NAME, attempt=2, after_step=1, clock=clock)
    monkeypatch.undo()
    StepLog(tmp_path / METRICS_NAME, attempt=3, after_step=1, clock=clock).close()
    assert [row["step"] for row in read_lines(tmp_path / "discarded.jsonl")] == [2, 3]


def test_damaged_line_is_named_when_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"a": 1}\n{"b": {"c": 2}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl, line 2 is not JSON"):
        read_lines(tmp_path / "metrics.jsonl")


def test_tail_reads_each_line_once_and_half_a_line_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = LogTail(path)
    assert tail.read() == []
    path.write_bytes(b'{"a": 1}\n{"a"')
    assert tail.read() == [{"a": 1}]
    with path.open("ab") as file:
        file.write(b': 2}\n{"a": 3}\nx\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl, line 4 is not JSON"):
        tail.read()


def test_samples_go_back_to_the_checkpoint_when_reopened(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "samples.jsonl", attempt=1, after_step=0, clock=clock)
    for step in (2, 4):
        log.write("sample", step, {"name": "a", "prompt": "a", "text": f"text {step}"})
    log.close()
    StepLog(tmp_path / "samples.jsonl", attempt=2, after_step=2, clock=clock).close()
    assert [row["text"] for row in read_lines(tmp_path / "samples.jsonl")] == ["text 2"]
    assert [row["text"] for row in read_lines(tmp_path / "discarded.jsonl")] == ["text 4"]


def test_sample_that_was_written_after_the_training_stays_when_reopened(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_bytes(b'{"step": 2, "prompt": "a", "text": "b"}\n')
    StepLog(tmp_path / "samples.jsonl", attempt=2, after_step=2, clock=clock).close()
    assert len(read_lines(tmp_path / "samples.jsonl")) == 1
