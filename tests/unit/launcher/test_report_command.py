"""`longhaul report` at the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from launcher.cli import app


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs under ./runs; the working directory is above them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        run = tmp_path / "runs" / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"name": name}))
    return tmp_path


def _report(arguments: Sequence[str]) -> Result:
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "500"}).invoke(app, ["report", *arguments])


def _message(result: Result) -> str:
    return " ".join(result.stderr.split()).removeprefix("error: ")


def test_report_writes_into_the_run_and_prints_the_path_when_one_is_given(storage: Path) -> None:
    result = _report(["runs/a"])
    assert (result.exit_code, result.stdout) == (0, "runs/a/report.html\n")
    assert "<h1>a</h1>" in (storage / "runs" / "a" / "report.html").read_text()


def test_report_writes_here_when_several_runs_are_given(storage: Path) -> None:
    result = _report(["runs/a", "runs/b"])
    assert (result.exit_code, result.stdout) == (0, "comparison.html\n")
    assert "<h1>2 runs</h1>" in (storage / "comparison.html").read_text()


def test_report_writes_where_it_is_told_and_makes_the_directory(storage: Path) -> None:
    result = _report(["runs/a", "runs/b", "--out", "pages/ab.html"])
    assert (result.exit_code, result.stdout) == (0, "pages/ab.html\n")
    assert (storage / "pages" / "ab.html").is_file()


def test_report_replaces_an_earlier_report(storage: Path) -> None:
    (storage / "comparison.html").write_text("<title>x · Longhaul report</title>")
    assert _report(["runs/a", "runs/b"]).exit_code == 0
    assert "<h1>2 runs</h1>" in (storage / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["runs/c"], 1, "runs/c: no such run. Name the directory of a run, that is storage/name."),
        (
            ["runs"],
            1,
            "runs: not the directory of a run: it has no run.json. "
            "It holds runs: name one or several of runs/a, runs/b.",
        ),
        (
            ["empty"],
            1,
            "empty: not the directory of a run: it has no run.json. Name the directory of a run, that is storage/name.",
        ),
        (["runs/a", "runs/a"], 2, "runs/a: the run was given twice. Name each run once."),
        (["runs/a", "link"], 2, "link: the run was given twice, as runs/a and as link. Name each run once."),
        (
            ["runs/a", "--out", "runs"],
            2,
            "runs: a directory, and --out names a file. Write --out runs/comparison.html.",
        ),
        (
            ["runs/a", "--out", "thesis.html"],
            2,
            "thesis.html: the file exists and is no report of ours, so it is not overwritten. "
            "Move it away, or name another file with --out FILE.",
        ),
    ],
)
def test_report_refuses_with_the_remedy_when(storage: Path, arguments: list[str], exit_code: int, message: str) -> None:
    (storage / "empty").mkdir()
    (storage / "link").symlink_to("runs/a")
    (storage / "thesis.html").write_text("<title>Mine</title>")
    result = _report(arguments)
    assert (result.exit_code, _message(result)) == (exit_code, message)
    assert (storage / "thesis.html").read_text() == "<title>Mine</title>"


def test_report_names_the_run_when_something_inside_it_is_given(storage: Path) -> None:
    inside = storage / "runs" / "a" / "checkpoints"
    assert _message(_report([str(inside)])) == (
        f"{inside}: not the directory of a run: it has no run.json. It belongs to the run {inside.parent}: name that."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to the superuser")
def test_report_says_how_to_write_elsewhere_when_the_run_is_read_only(storage: Path) -> None:
    run = storage / "runs" / "a"
    run.chmod(0o555)
    assert _message(_report(["runs/a"])) == (
        "runs/a/report.html: the report cannot be written: Permission denied. Name another place with --out FILE."
    )


def test_report_says_how_to_write_elsewhere_when_the_place_is_no_directory(storage: Path) -> None:
    (storage / "file").write_text("")
    result = _report(["runs/a", "--out", "file/page.html"])
    assert result.exit_code == 1
    assert "the report cannot be written" in _message(result)
    assert _message(result).endswith("Name another place with --out FILE.")
