"""`evaluate`: its ways, what is printed and written, and which command lines are refused before a model is loaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.inference import LoadedModel
from launcher.cli import app

TEXT = "She had said it twice before tea.\n" * 8


def run(*arguments: object) -> Result:
    words = ["evaluate", "run", *map(str, arguments)]
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "300"}).invoke(app, words)


@pytest.fixture(autouse=True)
def loads(untrained: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked to be loaded; an untrained model is given instead."""
    names: list[str] = []

    def load(reference: str) -> LoadedModel:
        names.append(reference)
        return untrained

    monkeypatch.setattr("cluster.inference.load_run", load)
    return names


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with something for every way, and in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    Path("q.jsonl").write_text('{"question": "It was", "choices": ["a truth", "tea"], "answer": 0}\n')
    Path("p.jsonl").write_text('{"good": "a truth", "bad": "truth a", "group": "order"}\n')
    return tmp_path


def facts(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_text_has_its_figures_under_their_names(files: Path) -> None:
    found = facts("--text", "text.txt", "--stride", 8)
    assert (found["run_directory"], found["step"]) == ("run", 1)
    (figures,) = found["results"]
    assert list(figures) == [
        "text",
        "tokens",
        "loss",
        "perplexity",
        "bytes",
        "bits_per_byte",
        "top1_accuracy",
        "top5_accuracy",
        "total_tokens",
        "context_tokens",
        "stride_tokens",
    ]
    assert (figures["text"], figures["bytes"], figures["stride_tokens"]) == ("text.txt", len(TEXT), 8)


def test_questions_and_pairs_have_their_figures_under_their_names(files: Path) -> None:
    (questions,) = facts("--choices", "q.jsonl")["results"]
    assert (questions["choices"], questions["questions"], questions["truncated"]) == ("q.jsonl", 1, 0)
    (pairs,) = facts("--pairs", "p.jsonl")["results"]
    assert (pairs["pairs"], pairs["compared"], pairs["groups"][0]["group"]) == ("p.jsonl", 1, "order")


@pytest.mark.parametrize(
    ("way", "lines"),
    [
        (["--text", "text.txt"], ["step 1", "text text.txt", "windows 32 tokens long, 32 apart"]),
        (["--choices", "q.jsonl"], ["step 1", "choices q.jsonl", "Intervals are Wilson's of 95 %."]),
        (["--pairs", "p.jsonl"], ["step 1", "pairs p.jsonl", "Intervals are Wilson's of 95 %."]),
    ],
)
def test_page_says_what_was_evaluated(way: list[str], lines: list[str], files: Path) -> None:
    result = run(*way)
    assert result.exit_code == 0, result.stderr
    assert set(lines) <= {" ".join(line.split()) for line in result.stdout.splitlines()}


def test_file_has_what_json_prints_when_it_is_named(files: Path) -> None:
    result = run("--pairs", "p.jsonl", "--out", "out.json")
    assert result.stdout.startswith("step        1\n")
    assert json.loads(Path("out.json").read_text()) == facts("--pairs", "p.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--choices", "q.jsonl", "--pairs", "p.jsonl"], "--choices and --pairs were both given. Choose one of them."),
        (
            ["--stride", "8"],
            "--stride was given without --text, and would be ignored. Add --text, or leave --stride out.",
        ),
        (
            ["--pairs", "p.jsonl", "--include-path", "."],
            "--include-path was given without --harness, and would be ignored. Add --harness, or leave --include-path "
            "out.",
        ),
        (
            ["--pairs", "p.jsonl", "--out", "none/out.json"],
            "--out none/out.json: there is no directory none. Make it first, or name another.",
        ),
        (["--choices", "p.jsonl"], "--choices p.jsonl, line 1 has the key 'good', which would be ignored."),
        (["--text", "absent.txt"], "absent.txt: cannot be read: No such file or directory. Check the path."),
    ],
)
def test_command_line_is_refused_before_a_model_is_loaded(
    arguments: list[str], message: str, files: Path, loads: list[str]
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout, loads) == (2, "", [])
    assert f"error: {message}" in " ".join(result.stderr.split())


def test_stride_is_refused_when_a_window_is_shorter(files: Path) -> None:
    result = run("--text", "text.txt", "--stride", 33)
    assert result.exit_code == 1
    assert "Use a stride of 1 to 32." in result.stderr


def test_harness_is_refused_when_it_is_not_installed(
    files: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("--harness", "arc_easy")
    assert (result.exit_code, loads) == (1, [])
    assert "Install it (python -m pip install 'longhaul[eval]')." in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--harness", " , "], "--harness is ' , ': there is no task to run. Name one, or several with commas."),
        (
            ["--harness", "a", "--include-path", "none"],
            "--include-path none: there is no such directory. Name one with .yaml tasks.",
        ),
    ],
)
def test_harness_is_refused_when_it_has_nothing_to_run(
    arguments: list[str], message: str, files: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    result = run(*arguments)
    assert (result.exit_code, loads) == (2, [])
    assert f"error: {message}" in " ".join(result.stderr.split())
