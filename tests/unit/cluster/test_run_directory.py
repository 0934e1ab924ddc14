from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import run_directory
from cluster.config import RunConfig
from cluster.errors import RunBusyError, StorageError
from cluster.lease import hold
from cluster.run_directory import RunDirectory, end_setting_aside, is_half_set_aside, prepare_storage, set_aside
from cluster.storage import retry, transfer
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import list_names, write_atomically
from cluster.storage.retry import Backoff
from data_pipeline.config import DataConfig

CONFIG = RunConfig(name="run", data=DataConfig(dataset="data"))


def test_identity_stays_when_the_run_is_created_again(tmp_path: Path) -> None:
    record = RunDirectory(tmp_path)
    record.create(CONFIG, "name: run\n")
    first = record.facts()
    record.create(CONFIG, "name: run\n")
    assert record.facts() == first
    assert len(first["wandb"]["id"]) == 8


def test_attempts_are_numbered_upwards(tmp_path: Path) -> None:
    RunDirectory(tmp_path).create(CONFIG, "")
    assert [RunDirectory(tmp_path).next_attempt() for _ in range(3)] == [1, 2, 3]


def test_facts_are_refused_when_damaged(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StorageError, match=r"run\.json is not JSON"):
        RunDirectory(tmp_path).facts()


def test_storage_is_refused_when_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        prepare_storage(tmp_path / "file" / "storage")


def test_old_run_keeps_all_it_holds_when_set_aside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("line\n")
    moved = set_aside(run)
    assert not run.exists()
    assert (moved / "metrics.jsonl").read_text() == "line\n"


@pytest.fixture
def stored(bucket: str) -> ObjectPath:
    """A run in an object store."""
    run = ObjectPath(f"{bucket}/runs/run")
    RunDirectory(run).create(CONFIG, "name: run\n")
    write_atomically(run / "checkpoints" / "step-00000004" / "MANIFEST.json", b"{}")
    write_atomically(run / "lease" / "0000000001.json", b"{}")
    return run


def test_no_update_is_lost_when_two_processes_change_the_facts_at_once(
    stored: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, others = run_directory.replace, [{"wandb": "theirs"}]

    def with_another_in_between(path: ObjectPath, change: Callable[[bytes | None], bytes]) -> bytes:
        def changed(content: bytes | None) -> bytes:
            if others:
                original(path, lambda old: json.dumps({**json.loads(old or b"{}"), **others.pop()}).encode())
            return change(content)

        return original(path, changed)

    monkeypatch.setattr(run_directory, "replace", with_another_in_between)
    RunDirectory(stored).update({"published_step": 4})
    facts = RunDirectory(stored).facts()
    assert (facts["wandb"], facts["published_step"], facts["name"]) == ("theirs", 4, "run")


def test_old_run_keeps_all_it_holds_when_set_aside_in_an_object_store(stored: ObjectPath) -> None:
    facts = RunDirectory(stored).facts()
    moved = set_aside(stored)
    assert list_names(stored) == ["lease"]
    assert RunDirectory(moved).facts() == facts
    assert (moved / "checkpoints" / "step-00000004" / "MANIFEST.json").is_file()


@pytest.mark.parametrize("operation", ["copy", "delete"])
def test_setting_aside_is_ended_when_it_was_killed_in_the_middle(
    operation: str, stored: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killing:
        """The store until it has copied or deleted two objects."""

        def __init__(self) -> None:
            self._store, self._calls = stored.store, 0

        def __getattr__(self, name: str) -> Any:
            if name == operation:
                self._calls += 1
                if self._calls > 2:
                    raise KeyboardInterrupt
            return getattr(self._store, name)

    killing = Killing()
    with monkeypatch.context() as until_then:
        until_then.setattr(ObjectPath, "store", property(lambda path: killing))
        with pytest.raises(KeyboardInterrupt):
            set_aside(stored)
    was_copied = operation == "delete"
    assert is_half_set_aside(stored) == was_copied
    end_setting_aside(stored)
    wholes = [name for name in list_names(stored.parent) if RunDirectory(stored.parent / name).exists()]
    assert len(wholes) == 1
    assert (wholes[0] == "run") == (not was_copied)
    assert list_names(stored) == (["lease"] if was_copied else ["checkpoints", "config.yaml", "lease", "run.json"])
    assert (stored.parent / wholes[0] / "checkpoints").is_dir()


@pytest.mark.parametrize("action", ["exists", "facts", "next_attempt"])
def test_run_is_continued_when_its_storage_fails_for_a_moment(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, waits = RunDirectory(tmp_path), list[float]()
    record.create(CONFIG, "")
    monkeypatch.setattr(retry, "Backoff", partial(Backoff, sleep=waits.append))
    name = {"exists": "exists", "facts": "read_bytes", "next_attempt": "read_bytes"}[action]
    original, errors = getattr(Path, name), [errno.EREMOTEIO, errno.ECONNREFUSED]

    def unsteady(path: Path) -> Any:
        if path.name == "run.json" and errors:
            raise OSError(errors.pop(), "out of reach")
        return original(path)

    monkeypatch.setattr(Path, name, unsteady)
    assert getattr(record, action)()
    assert len(waits) == 2


def test_facts_are_read_once_when_the_caller_tries_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise OSError(errno.EREMOTEIO, "out of reach")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(retry, "Backoff", lambda: pytest.fail("it was tried again"))
    with pytest.raises(OSError, match="out of reach"):
        RunDirectory(tmp_path).facts(patient=False)


def test_numbers_differ_when_two_processes_begin_an_attempt_at_once(
    stored: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read the same run.json and write at once; what the loser finds there must not look like its own."""
    original, both = run_directory.replace, threading.Barrier(2)

    def at_once(path: ObjectPath, change: Callable[[bytes | None], bytes]) -> bytes:
        calls: list[bytes | None] = []

        def changed(content: bytes | None) -> bytes:
            calls.append(content)
            if len(calls) == 1:
                both.wait(10)
            return change(content)

        return original(path, changed)

    monkeypatch.setattr(run_directory, "replace", at_once)
    monkeypatch.setattr(run_directory, "_UPDATING", nullcontext())
    with ThreadPoolExecutor(2) as pool:
        numbers = [begun.result() for begun in [pool.submit(RunDirectory(stored).next_attempt) for _ in range(2)]]
    assert sorted(numbers) == [1, 2]


def test_facts_stay_when_an_attempt_notes_something_after_the_next_has_begun(tmp_path: Path) -> None:
    record = RunDirectory(tmp_path)
    record.create(CONFIG, "")
    assert record.next_attempt() == 1
    assert record.update_within(1, {"published_step": 4})
    record.next_attempt()
    assert not record.update_within(1, {"published_step": 8})
    assert record.facts()["published_step"] == 4


def test_successors_run_stays_when_it_took_over_while_the_old_one_was_set_aside(
    stored: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is frozen once all is copied; another one ends the setting aside, and trains on."""
    (stored / "lease" / "0000000001.json").unlink()
    original = transfer.each_of

    def frozen(*arguments: Any, **options: Any) -> Any:
        copied = original(*arguments, **options)
        if RunDirectory(ObjectPath((stored / ".setting-aside").read_text())).exists():
            write_atomically(stored / "lease" / "0000000009.json", b"{}")
            end_setting_aside(stored)
            write_atomically(stored / "checkpoints" / "step-00000009" / "MANIFEST.json", b"new")
        return copied

    monkeypatch.setattr(transfer, "each_of", frozen)
    with hold(stored) as lease, pytest.raises(RunBusyError, match="taken over"):
        set_aside(stored, lease.confirm)
    assert RunDirectory(stored).exists()
    assert list_names(stored / "checkpoints") == ["step-00000004", "step-00000009"]
