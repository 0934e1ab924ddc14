"""Scenarios as tests, and what they share."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_cluster import Stage
from chaos_run import ChaosRun
from gates import Gates
from scenarios import DOZEN, scenarios
from tiny import build_tiny_dataset

_DISK_BYTES = 24 << 20
"""Room for a run's checkpoints a few times over, and filled in an instant."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a scenario; the first dozen belong to the slow set too."""
    if "scenario" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    chosen = option("--chaos-only")
    parameters = [
        pytest.param(each, id=each.id, marks=[pytest.mark.slow] if each.number < len(DOZEN) else [])
        for each in scenarios(option("--chaos-seed"), option("--chaos-rounds"))
        if chosen is None or chosen in (each.id, str(each.number), f"{each.number:02d}")
    ]
    metafunc.parametrize("scenario", parameters)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real dataset."""
    return build_tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """Gates and a cluster."""
    directory = Path(tempfile.mkdtemp(prefix="chaos", dir="/tmp"))
    made = Stage(Gates(directory))
    made.gates.reset()
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def undisturbed(stage: Stage, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Record of a run that nothing happened to."""
    storage = tmp_path_factory.mktemp("undisturbed")
    run = ChaosRun(stage, "undisturbed", storage, dataset, storage / "log")
    run.start()
    assert run.wait() == 0, run.log.read_text()
    return run.record


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be filled without harm to others; needs the right to mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "chaos", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk that may be filled cannot be mounted here: {error}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
