"""Logs in an object store: a real S3 server, and the same laws as for files."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cluster.errors import RunBusyError
from cluster.record import parts_log
from cluster.record.logs import EventsLog, LogTail, StepLog, has_log, read_lines
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import list_names


def clock() -> float:
    return 1000.0


@pytest.fixture
def run(bucket: str) -> ObjectPath:
    return ObjectPath(f"{bucket}/runs/austen")


def step_log(run: ObjectPath, *, attempt: int, after_step: int, readable: Callable[[], object] = print) -> StepLog:
    return StepLog(run / "metrics.jsonl", attempt=attempt, after_step=after_step, clock=clock, readable=readable)


def write_steps(run: ObjectPath, attempt: int, steps: range) -> StepLog:
    log = step_log(run, attempt=attempt, after_step=steps.start - 1)
    for step in steps:
        log.write("train", step, {"train/loss": float(step)})
        log.sync()
    return log


def steps_of(run: ObjectPath, name: str) -> list[int]:
    return [row["step"] for row in read_lines(run / name)]


def test_lines_are_read_in_order_when_they_are_in_many_parts(run: ObjectPath) -> None:
    write_steps(run, 1, range(1, 21)).close()
    assert len(list_names(run / "metrics")) == 21
    assert steps_of(run, "metrics.jsonl") == list(range(1, 21))


def test_log_goes_back_to_the_checkpoint_when_continued(run: ObjectPath) -> None:
    write_steps(run, 1, range(1, 6)).close()
    write_steps(run, 2, range(4, 5)).close()
    assert steps_of(run, "metrics.jsonl") == [1, 2, 3, 4]
    assert [row["attempt"] for row in read_lines(run / "metrics.jsonl")] == [1, 1, 1, 2]
    assert steps_of(run, "discarded.jsonl") == [4, 5]


def test_old_attempt_stands_when_the_next_died_before_its_first_part(
    run: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_steps(run, 1, range(1, 6)).close()
    with monkeypatch.context() as killed:
        killed.setattr(parts_log.PartsLog, "_put_retried", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step_log(run, attempt=2, after_step=3)
    assert steps_of(run, "metrics.jsonl") == [1, 2, 3, 4, 5]
    step_log(run, attempt=3, after_step=3).close()
    assert steps_of(run, "metrics.jsonl") == [1, 2, 3]
    assert steps_of(run, "discarded.jsonl") == [4, 5]


def test_superseded_attempt_adds_no_line_when_another_has_begun(run: ObjectPath) -> None:
    orphan = write_steps(run, 1, range(1, 3))
    step_log(run, attempt=2, after_step=1).close()
    orphan.write("train", 3, {"train/loss": -1.0})
    orphan.sync()
    assert steps_of(run, "metrics.jsonl") == [1]


def test_superseded_attempt_is_refused_when_it_opens_the_log_late(run: ObjectPath) -> None:
    write_steps(run, 2, range(1, 3)).close()
    with pytest.raises(RunBusyError, match="attempt 1 was superseded"):
        step_log(run, attempt=1, after_step=0)
    assert not has_log(run / "discarded.jsonl")
    assert steps_of(run, "metrics.jsonl") == [1, 2]


def test_parts_of_older_attempts_are_removed_when_another_has_begun(run: ObjectPath) -> None:
    write_steps(run, 1, range(1, 4)).close()
    step_log(run, attempt=2, after_step=3).close()
    assert list_names(run / "metrics") == ["00002-00000000.jsonl"]


def test_line_waits_for_no_store_and_is_put_before_a_checkpoint(
    run: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = step_log(run, attempt=1, after_step=0)
    with monkeypatch.context() as unreachable:
        unreachable.setattr(parts_log, "write_atomically", lambda path, data: pytest.fail("the step path waited"))
        log.write("train", 1, {})
    log.write("train", 2, {})
    assert steps_of(run, "metrics.jsonl") == []
    log.sync()
    assert steps_of(run, "metrics.jsonl") == [1, 2]
    log.close()


def test_line_is_put_by_itself_when_nothing_asks_for_it(run: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_log, "PUT_SECONDS", 0.01)
    put = threading.Event()
    log = step_log(run, attempt=1, after_step=0, readable=put.set)
    put.clear()
    log.write("train", 1, {})
    assert put.wait(30)
    assert steps_of(run, "metrics.jsonl") == [1]
    log.close()


def test_part_is_put_again_as_it_was_when_the_store_failed(run: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    log = step_log(run, attempt=1, after_step=0)
    log.write("train", 1, {})

    def taken_but_unanswered(path: ObjectPath, data: bytes) -> None:
        original(path, data)
        raise PermissionError(13, "no answer that helps", str(path))

    original = parts_log.write_atomically
    monkeypatch.setattr(parts_log, "write_atomically", taken_but_unanswered)
    with pytest.raises(PermissionError):
        log.sync()
    monkeypatch.undo()
    seen = LogTail(run / "metrics.jsonl")
    assert [row["step"] for row in seen.read()] == [1]
    log.write("train", 2, {})
    log.close()
    assert [row["step"] for row in seen.read()] == [2]
    assert steps_of(run, "metrics.jsonl") == [1, 2]


def test_tail_reads_each_line_once_when_parts_are_added(run: ObjectPath) -> None:
    log = write_steps(run, 1, range(1, 3))
    tail = LogTail(run / "metrics.jsonl")
    assert [row["step"] for row in tail.read()] == [1, 2]
    assert tail.read() == []
    log.write("train", 3, {})
    log.close()
    assert [row["step"] for row in tail.read()] == [3]


def test_events_of_all_drivers_are_read_in_order(run: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_log, "_LINES_PER_PART", 2)
    for token in (2, 10):
        log = EventsLog(run, clock=clock, token=token)
        for step in range(3):
            log.write("checkpoint_saved", step=step + token)
    assert [row["step"] for row in read_lines(run / "events.jsonl")] == [2, 3, 4, 10, 11, 12]
    assert list_names(run / "events")[:2] == ["0000000002-00000000.jsonl", "0000000002-00000001.jsonl"]


def test_event_goes_with_the_next_one_when_the_store_did_not_take_it(
    run: ObjectPath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventsLog(run, clock=clock, token=1)

    def refuse(path: ObjectPath, data: bytes) -> None:
        raise PermissionError(13, "not now", str(path))

    with monkeypatch.context() as failing:
        failing.setattr(parts_log, "write_atomically", refuse)
        log.write("started", step=0)
    assert "event started could not be written" in caplog.text
    log.write("finished", step=1)
    assert [row["event"] for row in read_lines(run / "events.jsonl")] == ["started", "finished"]
    assert log.last() == "finished"
