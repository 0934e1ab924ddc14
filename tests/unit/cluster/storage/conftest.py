"""A server of objects for the unit tests of storage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faulty_s3 import FaultyS3, serve

from cluster.storage.object_path import ObjectPath


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
