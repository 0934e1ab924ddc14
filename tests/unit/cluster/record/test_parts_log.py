"""Logs in an object store: a real S3 server, and the same laws as for files."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest
from faulty_s3 import Fault, FaultyS3

from cluster.errors import RunBusyError
from cluster.record import parts_log
from cluster.record.logs import EventsLog, LogTail, StepLog, has_log, read_lines
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import list_names, write_atomically
from cluster.storage.retry import Backoff

LINE_BYTES = 70
"""The lines of these tests have from 70 to 139."""


def clock() -> float:
    return 1000.0


@pytest.fixture
def run(bucket: str) -> ObjectPath:
    return ObjectPath(f"{bucket}/runs/austen")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are full with two lines."""
    for name in ("_STEPS_PART_BYTES", "_EVENTS_PART_BYTES"):
        monkeypatch.setattr(parts_log, name, 2 * LINE_BYTES - 1)


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


def test_lines_are_read_in_order_when_they_are_in_many_parts(run: ObjectPath, small_parts: None) -> None:
    write_steps(run, 1, range(1, 21)).close()
    assert len(list_names(run / "metrics")) == 11
    assert steps_of(run, "metrics.jsonl") == list(range(1, 21))


def test_few_parts_hold_an_attempt_when_its_lines_are_put_often(run: ObjectPath) -> None:
    write_steps(run, 1, range(1, 21)).close()
    assert list_names(run / "metrics") == ["00001-00000000.jsonl", "00001-00000001.jsonl"]
    assert steps_of(run, "metrics.jsonl") == list(range(1, 21))


def test_first_part_is_put_once_when_lines_follow(run: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    write_steps(run, 1, range(1, 3)).close()
    put: list[str] = []

    def note(path: ObjectPath, data: bytes) -> None:
        put.append(path.name)
        original(path, data)

    original = parts_log.write_atomically
    monkeypatch.setattr(parts_log, "write_atomically", note)
    write_steps(run, 2, range(3, 6)).close()
    assert put == ["00002-00000000.jsonl"] + 3 * ["00002-00000001.jsonl"]


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


def test_tail_keeps_its_place_when_the_part_it_saw_grows(run: ObjectPath, small_parts: None) -> None:
    log = step_log(run, attempt=1, after_step=0)
    tail = LogTail(run / "metrics.jsonl")
    seen = []
    for step in range(1, 8):
        log.write("train", step, {"train/loss": 1.0})
        log.sync()
        seen.append([row["step"] for row in tail.read()])
    log.close()
    assert seen == [[step] for step in range(1, 8)]


def test_tail_misses_no_line_when_its_part_is_filled_between_two_looks(
    run: ObjectPath, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_steps(run, 1, range(1, 2))
    tail = LogTail(run / "metrics.jsonl")
    assert [row["step"] for row in tail.read()] == [1]

    def fill(path: ObjectPath) -> bool:
        for step in (2, 3):
            log.write("train", step, {"train/loss": 1.0})
            log.sync()
        monkeypatch.setattr(ObjectPath, "is_file", original)
        return path.is_file()

    original = ObjectPath.is_file
    monkeypatch.setattr(ObjectPath, "is_file", fill)
    assert [row["step"] for row in tail.read()] == [2, 3]
    log.close()


def test_tail_loses_no_line_when_the_store_fails_between_two_parts(
    run: ObjectPath, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = step_log(run, attempt=1, after_step=0)
    tail = LogTail(run / "metrics.jsonl")
    assert tail.read() == []
    for step in range(1, 4):
        log.write("train", step, {"train/loss": 1.0})
        log.sync()
    log.close()

    def read_bytes(path: ObjectPath) -> bytes:
        if path.name.endswith("2.jsonl"):
            raise OSError(errno.EREMOTEIO, "no answer", str(path))
        return original(path)

    original = ObjectPath.read_bytes
    with monkeypatch.context() as failing:
        failing.setattr(ObjectPath, "read_bytes", read_bytes)
        with pytest.raises(OSError, match="no answer"):
            tail.read()
    assert [row["step"] for row in tail.read()] == [1, 2, 3]


def test_part_that_had_no_answer_grows_no_more_when_its_request_arrives_late(
    run: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_steps(run, 1, range(1, 2))
    late: list[tuple[ObjectPath, bytes]] = []

    def on_its_way(path: ObjectPath, data: bytes) -> None:
        late.append((path, data))
        raise PermissionError(13, "no answer that helps", str(path))

    log.write("train", 2, {})
    with monkeypatch.context() as failing:
        failing.setattr(parts_log, "write_atomically", on_its_way)
        with pytest.raises(PermissionError):
            log.sync()
    log.write("train", 3, {})
    log.sync()
    for path, data in late:
        write_atomically(path, data)
    assert steps_of(run, "metrics.jsonl") == [1, 2, 3]
    log.close()


def test_synced_lines_stay_when_the_process_dies_while_its_part_grows(
    run: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_steps(run, 1, range(1, 3))
    log.write("train", 3, {})
    with monkeypatch.context() as killed:
        killed.setattr(parts_log, "write_atomically", lambda path, data: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            log.sync()
    assert steps_of(run, "metrics.jsonl") == [1, 2]


def test_superseded_attempt_adds_no_line_when_it_puts_its_part_again_after_its_removal(run: ObjectPath) -> None:
    orphan = write_steps(run, 7, range(1, 3))
    for name in list_names(run / "metrics"):
        (run / "metrics" / name).unlink()
    step_log(run, attempt=1, after_step=0).close()  # of a run that was begun afresh
    orphan.write("train", 3, {})
    orphan.sync()
    assert steps_of(run, "metrics.jsonl") == []


@pytest.mark.parametrize("request_", ["GET .*metrics/", "PUT .*metrics/", "PUT .*discarded/"])
def test_log_is_continued_when_the_store_fails_for_longer_than_a_request(
    request_: str, store: ObjectPath, server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_steps(store, 1, range(1, 4)).close()
    monkeypatch.setattr(Backoff, "wait_seconds", lambda backoff, failures: 0.0)
    with server.failing(
        Fault(kind="error", request=request_, times=12)
    ):  # one call asks for each of two parts four times
        step_log(store, attempt=2, after_step=2).close()
    assert steps_of(store, "metrics.jsonl") == [1, 2]
    assert steps_of(store, "discarded.jsonl") == [3]


def test_tail_of_events_reads_each_once_when_an_older_driver_adds_late(run: ObjectPath) -> None:
    old = EventsLog(run, clock=clock, token=1)
    old.write("started")
    EventsLog(run, clock=clock, token=2).write("resumed")
    tail = LogTail(run / "events.jsonl")
    assert [row["event"] for row in tail.read()] == ["started", "resumed"]
    old.write("checkpoint_saved", step=1)
    assert [row["event"] for row in tail.read()] == ["checkpoint_saved"]
    assert tail.read() == []


def test_events_of_all_drivers_are_read_in_order(run: ObjectPath, small_parts: None) -> None:
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
