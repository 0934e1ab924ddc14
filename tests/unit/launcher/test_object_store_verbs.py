"""Verbs that are given a run in an object store, and configurations that name one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.config import RunConfig
from cluster.record.logs import EventsLog, StepLog
from cluster.storage.operations import StoragePath, storage_path, write_atomically
from data_pipeline.config import DataConfig
from launcher.cli import app
from launcher.config_file import load_run_config
from launcher.directories import require_dataset, require_run
from launcher.environment import require_absolute_paths
from launcher.errors import LauncherError
from launcher.training import absolute


@pytest.fixture
def run(bucket: str) -> StoragePath:
    """A run with two logged steps and one event."""
    directory = storage_path(f"{bucket}/runs/austen")
    write_atomically(directory / "run.json", json.dumps({"name": "austen"}).encode())
    log = StepLog(directory / "metrics.jsonl", attempt=1, after_step=0, clock=lambda: 1000.0)
    for step in (1, 2):
        log.write("train", step, {"train/loss": 3.0 / step})
    log.close()
    EventsLog(directory, clock=lambda: 1000.0, token=1).write("started", step=0, attempt=1)
    return directory


def report(*arguments: str) -> Result:
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "500"}).invoke(app, ["report", *arguments])


def test_report_is_put_into_the_run_and_its_uri_printed(run: StoragePath) -> None:
    result = report(str(run))
    assert (result.exit_code, result.stdout) == (0, f"{run}/report.html\n")
    page = (run / "report.html").read_bytes().decode()
    assert "<h1>austen</h1>" in page
    assert "started" in page
    assert report(str(run)).exit_code == 0  # over an earlier report of ours


def test_report_is_a_local_file_when_it_is_told_so(run: StoragePath, tmp_path: Path) -> None:
    assert report(str(run), "--out", str(tmp_path / "page.html")).stdout == f"{tmp_path / 'page.html'}\n"
    assert "<h1>austen</h1>" in (tmp_path / "page.html").read_text()
    assert not (run / "report.html").exists()


def test_report_names_the_run_when_something_else_in_the_store_is_named(run: StoragePath) -> None:
    above = report(str(run.parent))
    assert f"It holds runs: name one or several of {run}." in " ".join(above.stderr.split())
    below = report(str(run / "metrics"))
    assert f"It belongs to the run {run}: name that." in " ".join(below.stderr.split())
    assert "no such run" in report(f"{run}-other").stderr


def test_run_in_a_store_is_known_by_its_uri(run: StoragePath) -> None:
    assert require_run(str(run)) == run
    with pytest.raises(LauncherError, match="no such run"):
        require_run(f"{run}-other")


def test_dataset_is_refused_when_it_is_named_by_a_uri() -> None:
    with pytest.raises(LauncherError, match=r"data\.dataset is 's3://b/d', which is a URI, and datasets are read from"):
        require_dataset("s3://b/d", "data.dataset")


def test_storage_stays_a_uri_when_paths_are_made_absolute() -> None:
    config = RunConfig(name="austen", storage="s3://bucket/runs", data=DataConfig(dataset="/data"))
    require_absolute_paths(config)
    assert absolute(config).storage == "s3://bucket/runs"


def test_configuration_is_read_from_a_store(run: StoragePath) -> None:
    write_atomically(run / "config.yaml", b"name: austen\nstorage: s3://bucket/runs\ndata: {dataset: /data}\n")
    assert load_run_config(str(run / "config.yaml")).storage == "s3://bucket/runs"


@pytest.mark.parametrize("storage", ["http://host/runs", "s3:///runs"])
def test_storage_is_refused_when_its_uri_means_nothing(storage: str) -> None:
    with pytest.raises(ValueError, match="names no object store that is known: write s3://"):
        RunConfig(name="austen", storage=storage, data=DataConfig(dataset="/data"))
