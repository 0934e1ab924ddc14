from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import RunConfig
from cluster.errors import StorageError
from cluster.run_directory import RunDirectory, prepare_storage, set_aside
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
