"""Fixtures of the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import finish, start
from runs import pretrain
from tiny import build_tiny_dataset

UNDISTURBED_SECONDS = 600.0
"""Longest time of the run that nothing happens to: 30 s on an idle machine, minutes on one that does much else."""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real dataset, built once."""
    return build_tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage of a run that nothing happened to, trained by the real command on a private cluster."""
    storage = tmp_path_factory.mktemp("undisturbed")
    log = storage / "log"
    assert finish(start(*pretrain(storage, dataset), log=log), log, UNDISTURBED_SECONDS) == 0
    return storage
