from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.record.logs import StepLog
from cluster.record.unread_lines import UnreadLines


def log(run: Path, *, attempt: int, after_step: int, steps: range, name: str = "metrics.jsonl") -> None:
    """Write steps as an attempt does, which goes back to a checkpoint first."""
    made = StepLog(run / name, attempt=attempt, after_step=after_step, clock=lambda: 1.0)
    for step in steps:
        made.write("train", step, {"train/loss": 2.0})
    made.close()


def lines_of(unread: UnreadLines) -> list[tuple[int, int]]:
    return [(line["attempt"], line["step"]) for line in unread.take()]


def test_lines_of_both_logs_are_given_once(tmp_path: Path) -> None:
    unread = UnreadLines(tmp_path)
    log(tmp_path, attempt=1, after_step=0, steps=range(1, 3))
    log(tmp_path, attempt=1, after_step=0, steps=range(2, 3), name="samples.jsonl")
    assert lines_of(unread) == [(1, 1), (1, 2), (1, 2)]
    assert lines_of(unread) == []


def test_lines_of_an_attempt_are_kept_and_none_of_the_next_given_when_the_record_goes_back(tmp_path: Path) -> None:
    unread = UnreadLines(tmp_path)
    log(tmp_path, attempt=1, after_step=0, steps=range(1, 3))
    assert lines_of(unread) == [(1, 1), (1, 2)]
    log(tmp_path, attempt=1, after_step=2, steps=range(3, 5))
    unread.hold()
    log(tmp_path, attempt=2, after_step=1, steps=range(2, 9))
    assert lines_of(unread) == [(1, 3), (1, 4)]
    assert lines_of(unread) == []


def test_whole_record_is_given_when_begun_again(tmp_path: Path) -> None:
    unread = UnreadLines(tmp_path)
    log(tmp_path, attempt=1, after_step=0, steps=range(1, 3))
    unread.hold()
    unread.begin_again()
    log(tmp_path, attempt=2, after_step=1, steps=range(2, 4))
    assert lines_of(unread) == [(1, 1), (2, 2), (2, 3)]


def test_nothing_more_is_given_when_the_last_lines_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unread = UnreadLines(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("damaged\n")
    unread.hold()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"attempt": 2, "step": 1}) + "\n")
    assert lines_of(unread) == []
    assert "W&B lacks the last lines of an attempt" in caplog.text
