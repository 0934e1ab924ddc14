"""Fixtures of the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import build_tiny_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real dataset, built once."""
    return build_tiny_dataset(tmp_path_factory.mktemp("data"))
