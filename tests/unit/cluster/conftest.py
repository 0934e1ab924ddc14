"""Fixtures of cluster's unit tests: a small dataset, a run to branch from, a server of objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attempts import attempt_alone
from branches import STEP, save
from faulty_s3 import FaultyS3, serve
from tiny import build_tiny_dataset, tiny_run

from cluster.config import RunConfig
from cluster.run_directory import RunDirectory
from cluster.storage.object_path import ObjectPath


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the tiny dataset's text, built once."""
    return build_tiny_dataset(tmp_path_factory.mktemp("data"), text_bytes=60_000)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> RunConfig:
    """A run that was trained, with checkpoints of steps 2 and 4."""
    config = tiny_run(
        tmp_path_factory.mktemp("trained"), dataset, train__max_steps=4, checkpoint__every_steps=2, name="trained"
    )
    attempt_alone(config)
    return config


@pytest.fixture
def parent(tmp_path: Path, dataset: Path) -> RunConfig:
    """A run with checkpoints of steps 4 and 8, two files each."""
    config = tiny_run(tmp_path / "runs", dataset)
    directory = tmp_path / "runs" / "tiny"
    directory.mkdir(parents=True)
    RunDirectory(directory).create(config, "name: tiny\n")
    for step in (STEP, 2 * STEP):
        save(config, step)
    return config


@pytest.fixture(scope="session")
def server() -> Iterator[FaultyS3]:
    """A real S3 server that can be told to fail."""
    with serve() as running:
        yield running


@pytest.fixture
def store(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """A prefix in an empty bucket."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectPath(server.new_bucket()) / "runs"
