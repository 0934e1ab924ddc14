"""A run in a server of objects, for the unit tests of checkpoints."""

from __future__ import annotations

from functools import partial

import pytest

from cluster.checkpoint import writer
from cluster.storage import retry
from cluster.storage.object_path import ObjectPath
from cluster.storage.retry import Backoff


@pytest.fixture
def store(store: ObjectPath) -> ObjectPath:
    """A run in an empty bucket."""
    return store / "tiny"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once, and not often."""
    monkeypatch.setattr(retry, "Backoff", partial(Backoff, tries=3, sleep=lambda seconds: None))
    monkeypatch.setattr(writer, "_POLL_STORE_SECONDS", 0.01)
