"""A server of objects for the unit tests of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from faulty_s3 import FaultyS3, serve

from cluster.checkpoint import writer
from cluster.storage import retry
from cluster.storage.object_path import ObjectPath
from cluster.storage.retry import Backoff


@pytest.fixture(scope="session")
def server() -> Iterator[FaultyS3]:
    """A real S3 server that can be told to fail."""
    with serve() as running:
        yield running


@pytest.fixture
def store(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """A run in an empty bucket."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectPath(server.new_bucket()) / "runs" / "tiny"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once, and not often."""
    monkeypatch.setattr(retry, "Backoff", partial(Backoff, tries=3, sleep=lambda seconds: None))
    monkeypatch.setattr(writer, "_POLL_STORE_SECONDS", 0.01)
