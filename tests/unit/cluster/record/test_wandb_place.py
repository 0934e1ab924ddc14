"""W&B's files: in the run's directory, or on this machine until they can be put into an object store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.record.wandb_place import WandbPlace
from cluster.storage.object_path import ObjectPath


@pytest.fixture
def run(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return ObjectPath(f"{bucket}/runs/austen")


def write(place: WandbPlace, directory: str) -> None:
    place.make()
    path = place.directory / directory / "files" / "table.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def test_files_lie_in_the_run_when_it_has_a_directory(tmp_path: Path) -> None:
    place = WandbPlace(tmp_path)
    write(place, "offline-run-1")
    place.keep()
    assert (place.parent, place.directory) == (tmp_path, tmp_path / "wandb")
    assert (tmp_path / "wandb" / "offline-run-1" / "files" / "table.json").is_file()


def test_offline_files_are_put_into_the_run_and_leave_this_machine(run: ObjectPath) -> None:
    place = WandbPlace(run)
    write(place, "offline-run-1")
    place.keep()
    assert (run / "wandb" / "offline-run-1" / "files" / "table.json").read_bytes() == b"{}"
    assert not place.parent.exists()


def test_files_of_an_online_run_are_not_put_anywhere(run: ObjectPath) -> None:
    place = WandbPlace(run)
    write(place, "run-1")
    place.keep()
    assert not run.exists()
    assert not place.parent.exists()


def test_offline_files_stay_and_are_named_when_the_store_does_not_take_them(
    run: ObjectPath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(source: Path, target: ObjectPath) -> None:
        raise PermissionError(13, "refused", str(target))

    monkeypatch.setattr("cluster.record.wandb_place.copy_file", refuse)
    place = WandbPlace(run)
    write(place, "offline-run-1")
    place.keep()
    assert str(place.parent) in caplog.text
    assert place.directory.is_dir()


def test_files_of_the_next_attempt_stay_when_those_of_the_one_before_are_put_late(run: ObjectPath) -> None:
    first, second = WandbPlace(run), WandbPlace(run)
    write(first, "offline-run-1")
    write(second, "offline-run-2")
    first.keep()
    assert not first.parent.exists()
    assert (second.directory / "offline-run-2").is_dir()
    second.keep()
    for name in ("offline-run-1", "offline-run-2"):
        assert (run / "wandb" / name / "files" / "table.json").is_file()


def test_files_of_dead_processes_are_removed_and_those_of_the_living_stay(run: ObjectPath) -> None:
    scratch = WandbPlace(run).parent.parent
    for pid in (os.getppid(), 2**22 + 1):  # the second is above what Linux gives to processes
        (scratch / f"{pid}-1a2b").mkdir(parents=True)
    WandbPlace(run)
    assert [each.name for each in scratch.iterdir()] == [f"{os.getppid()}-1a2b"]
