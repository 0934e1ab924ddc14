"""Scenarios as tests, and what they share."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_s3
import pytest
from chaos_cluster import Stage
from chaos_run import ChaosRun
from gates import Gates
from scenarios import DOZEN, Scenario, scenarios
from tiny import build_tiny_dataset

from cluster.storage.object_path import ObjectPath

_STORE_SECONDS = 60.0
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


@pytest.fixture(scope="session")
def store(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An object store in a process of its own that can be told to fail; gives its address."""
    log = tmp_path_factory.mktemp("store") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, faulty_s3.__file__, str(stage.store_port)], stdout=file, stderr=file
        )
    try:
        _wait_for(stage.store_url, log)
        yield stage.store_url
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, log: Path) -> None:
    deadline = time.monotonic() + _STORE_SECONDS
    while True:
        try:
            faulty_s3.struck(url)
        except OSError:
            if time.monotonic() > deadline:
                raise AssertionError(f"the object store did not begin: {log.read_text()}") from None
            time.sleep(0.1)
        else:
            return


@pytest.fixture
def bucket(scenario: Scenario, store: str, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """An empty bucket of it, which this process reaches too."""
    for name, value in {**faulty_s3.ENVIRONMENT, "AWS_ENDPOINT_URL": store}.items():
        monkeypatch.setenv(name, value)
    name = f"chaos-{scenario.number:02d}"
    faulty_s3.set_faults(store)
    faulty_s3.create_bucket(store, name)
    return ObjectPath(f"s3://{name}/runs")


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
