"""The edge: exit codes, where messages go, and that a person never meets a traceback unasked."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.errors import RunBusyError
from data_pipeline.errors import CorpusError
from launcher.cli import app
from launcher.errors import InterruptError
from llm.errors import ModelError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner(env={"NO_COLOR": "1"})


def _raise(error: BaseException) -> Any:
    def verb(*_: object, **__: object) -> None:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "message", "exit_code"),
    [
        (CorpusError("the corpus is empty."), "the corpus is empty.", 1),
        (ModelError("the model is odd."), "the model is odd.", 1),
        (RunBusyError("the run is busy."), "the run is busy.", 75),
        (InterruptError("stopped early."), "stopped early.", 130),
        (KeyboardInterrupt(), "stopped.", 130),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "[Errno 28] No space left on device: 'x'", 1),
    ],
)
def test_failure_becomes_one_message_and_an_exit_code(
    error: BaseException, message: str, exit_code: int, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.config_file.load_config", _raise(error))
    result = runner.invoke(app, ["config", "show", "smoke"])
    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, "", f"error: {message}\n")


def test_advice_names_the_command_as_the_person_typed_it(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.config_file.load_config", _raise(ModelError("`longhaul jobs list` shows all.")))
    for program in ("longhaul", "python -m launcher"):
        result = runner.invoke(app, ["config", "show", "smoke"], prog_name=program)
        assert result.stderr == f"error: `{program} jobs list` shows all.\n"


def test_failure_shows_its_traceback_when_asked(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.config_file.load_config", _raise(ModelError("the model is odd.")))
    result = runner.invoke(app, ["--debug", "config", "show", "smoke"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("error: the model is odd.\n")


def test_defect_keeps_its_traceback(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.config_file.load_config", _raise(ZeroDivisionError()))
    assert isinstance(runner.invoke(app, ["config", "show", "smoke"]).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["config", "show", "smoke", "trian.max_steps=3"],
            "override 'trian.max_steps=3': unknown key 'trian'; did you mean 'train'?",
        ),
        (
            ["pretrain", "smoke", "zero.stage=9"],
            "override 'zero.stage=9': zero.stage is 9, and must be one of 0, 1, 2, 3.",
        ),
        (["data", "build", "smoke"], "recipe 'smoke': "),
        (
            ["evaluate", "run", "--text", "a", "--dataset", "b"],
            "--text and --dataset were both given. Choose one",
        ),
        (
            ["evaluate", "run", "--text", "absent.txt"],
            "absent.txt: cannot be read: No such file or directory.",
        ),
    ],
)
def test_mistake_in_the_command_line_exits_2_without_output(
    arguments: list[str], message: str, runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--temperature", "nan"], "temperature is nan: logits cannot be divided by it. Use a finite number"),
        (["--top-p", "nan"], "top_p is nan: it is a sum of probabilities, above 0 and at most 1."),
        (["--max-new-tokens", "0"], "max_new_tokens is 0: there is nothing to do."),
    ],
)
def test_sampling_that_makes_no_sense_is_refused_in_our_words(
    option: list[str], message: str, runner: CliRunner
) -> None:
    result = runner.invoke(app, ["generate", "run", "--prompt", "x", *option])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")


def test_version_names_the_libraries_without_importing_them() -> None:
    code = (
        "import sys, launcher.__main__ as m\n"
        "sys.argv = ['longhaul', '--version']\n"
        "try: m.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "longhaul",
        "python",
        "torch",
        "deepspeed",
        "ray",
        "numpy",
    ]
    assert f"torch     {metadata.version('torch')}\n" in result.stdout
    assert not {"torch", "deepspeed", "ray", "numpy"} & set(result.stderr.split())


@pytest.mark.parametrize("arguments", [["nonsense"], ["pretrain"], ["generate", "run"], ["data", "build"]])
def test_unknown_or_incomplete_verb_exits_2(arguments: list[str], runner: CliRunner) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize("verb", [["checkpoint", "list"], ["checkpoint", "verify"]])
def test_checkpoint_verbs_refuse_what_is_no_run(verb: list[str], runner: CliRunner, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    result = runner.invoke(app, [*verb, absent])
    assert result.exit_code == 1
    assert result.stderr == f"error: {absent}: no such run. Name the directory of a run, that is storage/name.\n"
    result = runner.invoke(app, [*verb, str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path} is neither a run nor a dataset: ")
    (tmp_path / "run.json").write_text("{}")
    result = runner.invoke(app, [*verb, str(tmp_path)])
    assert (result.exit_code, result.stderr) == (1, f"error: {tmp_path}: the run has no checkpoint yet.\n")


@pytest.mark.parametrize("kind", [[], ["pretrain"], ["data"]])
def test_config_schema_prints_json(kind: list[str], runner: CliRunner) -> None:
    result = runner.invoke(app, ["config", "schema", *kind])
    expected = "DataBuildConfig" if kind == ["data"] else "RunConfig"
    assert json.loads(result.stdout)["title"] == expected


def _longhaul(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's `&` makes it ignored
        **options,
    )


def test_output_ends_quietly_when_its_reader_is_gone() -> None:
    process = _longhaul("config", "schema")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) in (0, 1)


def test_interrupt_ends_with_130_and_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never.yaml")  # reading it waits, so the signal finds the command at work
    process = _longhaul("config", "show", str(tmp_path / "never.yaml"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "error: stopped.\n")
