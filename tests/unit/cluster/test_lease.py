"""The lease: one holder, told from the dead by looking, fenced by its token."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import lease as lease_module
from cluster.errors import RunBusyError, StorageError
from cluster.lease import LeaseRecord, forget, hold, holds, live_holder, newest_record
from cluster.storage import retry
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, list_names
from cluster.storage.retry import Backoff

EXPIRY_SECONDS = 1.2


def write(directory: Path, record: LeaseRecord) -> None:
    path = directory / "lease" / f"{record.token:010d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(record)))


def foreign(token: int = 3, **changes: object) -> LeaseRecord:
    """A lease of another machine."""
    record = LeaseRecord(
        token=token,
        holder="there",
        place="elsewhere/boot/1",
        process=1,
        process_start=1,
        job=None,
        renewals=0,
        released=False,
    )
    return replace(record, **changes)


def test_second_holder_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    busy = pytest.raises(RunBusyError, match=r"process \d+ on .*job-7.*two drivers")
    with hold(tmp_path, job="job-7"), busy, hold(tmp_path):
        pass


def test_token_rises_and_old_files_go_when_the_lease_was_given_back(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        assert holds(tmp_path, first.holder)
    with hold(tmp_path) as second:
        assert (first.token, second.token) == (1, 2)
        assert not holds(tmp_path, first.holder)
        assert len(list((tmp_path / "lease").iterdir())) == 1
    assert newest_record(tmp_path).released


def test_lease_is_taken_at_once_when_its_process_is_dead(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cluster.lease import hold\n"
        "with hold(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert not newest_record(tmp_path).released
    with hold(tmp_path, expiry_seconds=10**9) as taken:
        assert taken.token == 2


def test_lease_is_taken_at_once_when_its_process_number_belongs_to_another_process(tmp_path: Path) -> None:
    with hold(tmp_path):
        mine = newest_record(tmp_path)
    write(tmp_path, replace(mine, released=False, process_start=mine.process_start - 1))
    assert live_holder(tmp_path, 10**9) is None


def test_lease_of_another_machine_is_taken_when_it_stays_silent(tmp_path: Path) -> None:
    write(tmp_path, foreign())
    said: list[str] = []
    with hold(tmp_path, say=said.append, expiry_seconds=EXPIRY_SECONDS) as taken:
        assert taken.token == 4
    assert said == ["the run was held by process 1 on elsewhere: watching for up to 1 s whether it lives"]


def test_lease_of_another_machine_stands_when_it_is_renewed(tmp_path: Path) -> None:
    write(tmp_path, foreign())
    renewal = threading.Timer(0.2, write, (tmp_path, foreign(renewals=1)))
    renewal.start()
    with pytest.raises(RunBusyError, match="process 1 on elsewhere"), hold(tmp_path, expiry_seconds=10**9):
        pass
    renewal.join()


def test_half_written_lease_is_watched_and_then_taken(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "0000000005.json").write_text('{"token": 5, "hol')
    with hold(tmp_path, expiry_seconds=EXPIRY_SECONDS) as taken:
        assert taken.token == 6


def test_holder_that_was_taken_for_dead_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.05)
    with hold(tmp_path) as mine:
        mine.check()
        write(tmp_path, foreign(token=2))
        with pytest.raises(RunBusyError, match=r"taken over by process 1 on elsewhere.*goes on there"):
            mine.check()
    assert newest_record(tmp_path) == foreign(token=2)  # giving back changes nothing of another's


class Storage:
    """Reads of lease files that fail while the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.fails = False
        real = getattr(lease_module, name)

        def read(*arguments: Any) -> Any:
            if self.fails:
                raise OSError(errno.ESTALE, "Stale file handle")
            return real(*arguments)

        monkeypatch.setattr(lease_module, name, read)


@pytest.mark.parametrize("name", ["_read", "_tokens"])
def test_lease_stands_when_it_cannot_be_read_for_a_while(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(monkeypatch, name)
    with hold(tmp_path) as mine:
        storage.fails = True
        with caplog.at_level(logging.WARNING):
            mine.check()
            mine.check()
        storage.fails = False
        mine.check()
        assert [record.getMessage() for record in caplog.records] == [
            f"the lease of {tmp_path} cannot be read now: Stale file handle"
        ]
        write(tmp_path, foreign(token=2))
        with pytest.raises(RunBusyError, match="taken over"):
            mine.check()


def test_holder_is_told_when_its_lease_is_gone(tmp_path: Path) -> None:
    with hold(tmp_path) as mine:
        (tmp_path / "lease" / "0000000001.json").unlink()
        with pytest.raises(RunBusyError, match="taken over by another command"):
            mine.check()


def test_nothing_is_raised_when_a_lease_is_given_back_to_a_storage_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(monkeypatch, "_read")
    with hold(tmp_path):
        storage.fails = True


def test_storage_that_cannot_be_listed_is_told_from_a_run_that_nobody_held(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("no directory")
    with pytest.raises(NotADirectoryError):
        holds(tmp_path, "anyone")


def test_holder_renews_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.02)
    with hold(tmp_path):
        while newest_record(tmp_path).renewals < 3:
            pass


def test_one_of_many_gets_the_lease_when_all_ask_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from cluster.errors import RunBusyError; from cluster.lease import hold\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    with hold(Path(sys.argv[1])) as lease: print(lease.token, flush=True); sys.stdin.readline()\n"
        "except RunBusyError: print('busy', flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("end\n", timeout=30)
    assert sorted(answers) == ["1", "busy", "busy", "busy"]


def test_nothing_is_left_of_a_lease_where_no_run_was_begun(tmp_path: Path) -> None:
    with hold(tmp_path):
        forget(tmp_path)
        assert newest_record(tmp_path) is not None  # still held
    forget(tmp_path)
    assert not list(tmp_path.iterdir())


def test_watcher_sees_the_holder_again_when_it_set_the_run_aside_meanwhile(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write(run, foreign(token=5))

    def set_aside() -> None:
        run.rename(tmp_path / "aside")
        time.sleep(0.8)  # longer than a look
        run.mkdir()
        write(run, foreign(token=6, holder="there again"))

    mover = threading.Timer(0.2, set_aside)
    mover.start()
    with pytest.raises(RunBusyError, match="elsewhere"), hold(run, expiry_seconds=10**9):
        pass
    mover.join()


def test_token_goes_on_rising_when_a_directory_takes_the_place_of_one_that_was_held(tmp_path: Path) -> None:
    with hold(tmp_path, above=7) as lease:
        assert lease.token == 8


def test_paused_lease_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.01)
    run = tmp_path / "run"
    run.mkdir()
    with hold(run) as lease:
        lease.pause()
        run.rename(tmp_path / "aside")
        run.mkdir()
    assert not list(run.iterdir())


def test_second_holder_is_refused_in_an_object_store_while_the_first_lives(bucket: str) -> None:
    run = ObjectPath(f"{bucket}/runs/austen")
    with hold(run) as first, pytest.raises(RunBusyError, match="two drivers would spoil"):
        hold(run).__enter__()
    with hold(run) as second:
        assert second.token == first.token + 1
    assert list_names(run / "lease") == ["0000000002.json"]


def test_driver_knows_its_own_lease_when_the_store_lost_the_answer(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, original, calls = ObjectPath(f"{bucket}/runs/austen"), lease_module.create_exclusively, []

    def taken_but_unanswered(path: StoragePath, data: bytes) -> bool:
        created = original(path, data)
        calls.append(created)
        if len(calls) == 1:
            raise ConnectionResetError(errno.ECONNRESET, "the answer was lost", str(path))
        return created

    monkeypatch.setattr(lease_module, "create_exclusively", taken_but_unanswered)
    with hold(run) as lease:
        lease.check()
        assert (lease.token, calls) == (1, [True, True])


def test_run_is_taken_when_its_lease_cannot_be_read_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, errors, waits = lease_module.list_names, [errno.EREMOTEIO] * 3, list[float]()

    def unsteady(path: StoragePath) -> list[str]:
        if errors:
            raise OSError(errors.pop(), "the store does not answer")
        return original(path)

    monkeypatch.setattr(retry, "Backoff", partial(Backoff, sleep=waits.append))
    monkeypatch.setattr(lease_module, "list_names", unsteady)
    with hold(tmp_path) as lease:
        assert lease.token == 1
    assert len(waits) == 3


def test_watch_begins_anew_when_the_lease_could_not_be_read_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder could not renew it either, while the storage did not answer."""
    write(tmp_path, foreign())
    seconds, looks = [0.0], list[float]()
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(lease_module.time, "sleep", lambda waited: seconds.__setitem__(0, seconds[0] + waited))
    original = lease_module.newest_record

    def unsteady(directory: Path) -> LeaseRecord | None:
        looks.append(seconds[0])
        if len(looks) == 20:
            seconds[0] += 100.0
            raise OSError(errno.EREMOTEIO, "the store does not answer")
        return original(directory)

    monkeypatch.setattr(lease_module, "newest_record", unsteady)
    assert live_holder(tmp_path, 10.0) is None
    assert looks[-1] - (looks[18] + 100.0) >= 10.0


def test_removal_is_refused_when_another_driver_took_the_run(tmp_path: Path) -> None:
    with hold(tmp_path) as lease:
        lease.confirm()
        write(tmp_path, foreign(token=9))
        with pytest.raises(RunBusyError, match="taken over by process 1 on elsewhere"):
            lease.confirm()


def test_removal_is_refused_when_the_lease_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: StoragePath) -> list[str]:
        raise OSError(errno.EACCES, "403 Forbidden")

    with hold(tmp_path) as lease:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(lease_module, "list_names", refuse)
            with pytest.raises(StorageError, match=r"403 Forbidden\. Nothing more is removed"):
                lease.confirm()
        lease.confirm()
