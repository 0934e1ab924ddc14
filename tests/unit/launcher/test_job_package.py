"""What a job travels with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher import job_package
from launcher.errors import LauncherError
from launcher.job_package import stage


def packages(root: Path) -> Path:
    for name in ("launcher", "cluster", "data_pipeline", "llm"):
        (root / name / "__pycache__").mkdir(parents=True)
        (root / name / "__init__.py").write_text("")
        (root / name / "__pycache__" / "x.pyc").write_bytes(b"\0" * 1000)
    (root / "runs").mkdir()
    (root / "runs" / "big").write_bytes(os.urandom(10_000))
    return root


def test_package_holds_the_code_and_the_configuration_and_nothing_else(tmp_path: Path) -> None:
    staged = stage(tmp_path / "job", "name: x\n", packages(tmp_path / "root"))
    names = {name for name, _ in staged.files}
    assert names == {f"{name}/__init__.py" for name in ("launcher", "cluster", "data_pipeline", "llm")} | {
        "config.yaml"
    }
    assert (tmp_path / "job" / "config.yaml").read_text() == "name: x\n"
    assert staged.size_bytes == len("name: x\n")
    assert staged.zipped_bytes > 0


def test_shipped_code_weighs_little(tmp_path: Path) -> None:
    staged = stage(tmp_path / "job", "name: x\n")
    assert staged.zipped_bytes < 4 * 2**20
    assert {"launcher/__main__.py", "cluster/py.typed"} <= {name for name, _ in staged.files}


def test_package_that_no_cluster_takes_is_refused_with_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_package, "LIMIT_BYTES", 2**20)
    root = packages(tmp_path / "root")
    (root / "llm" / "weights.bin").write_bytes(os.urandom(2**21))
    with pytest.raises(LauncherError, match=r"weighs 2\.0 MiB zipped.*at most 1.*llm/weights\.bin \(2\.0 MiB\)"):
        stage(tmp_path / "job", "name: x\n", root)
