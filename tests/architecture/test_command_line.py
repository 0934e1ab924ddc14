"""The command line's surface: frozen, explained, quick to show."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from launcher.cli import app

ROOT = Path(__file__).parents[2]
HELP_SECONDS = 0.5  # of processor time, best of three, because the machine does other things at the same time
HEAVY = {"torch", "ray", "deepspeed", "wandb", "pyarrow", "numpy", "sentencepiece"}

SURFACE = {
    "": ["--debug", "--version"],
    "quickstart": ["--out"],
    "pretrain": ["CONFIG", "KEY=VALUE", "--fresh"],
    "finetune": ["CONFIG", "KEY=VALUE", "--fresh"],
    "predict": ["RUN_OR_CHECKPOINT", "FILE", "--text-field", "--batch-size"],
    "evaluate": [
        "RUN_OR_CHECKPOINT",
        "--text",
        "--stride",
        "--dataset",
        "--answers",
        "--choices",
        "--pairs",
        "--harness",
        "--include-path",
        "--out",
        "--json",
    ],
    "generate": [
        "RUN_OR_CHECKPOINT",
        "--prompt",
        "--prompts",
        "--chat",
        "--system",
        "--max-new-tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--repetition-penalty",
        "--stop",
        "--stop-token",
        "--seed",
        "--batch-size",
        "--json",
    ],
    "data": [],
    "data tokenizer": ["CONFIG", "KEY=VALUE"],
    "data build": ["CONFIG", "KEY=VALUE", "--fresh"],
    "data verify": ["DATASET"],
    "data stats": ["DATASET", "--json"],
    "checkpoint": [],
    "checkpoint list": ["RUN", "--json"],
    "checkpoint verify": ["RUN"],
    "checkpoint inspect": ["RUN", "--step", "--values", "--json"],
    "checkpoint diff": ["RUN[@STEP]", "RUN[@STEP]", "--json"],
    "checkpoint export": [
        "RUN",
        "--out",
        "--step",
        "--dtype",
        "--max-shard-bytes",
        "--no-tokenizer",
        "--no-chat-template",
        "--json",
    ],
    "branch": ["RUN", "NAME", "--from", "KEY=VALUE"],
    "report": ["RUN", "--out"],
    "bench": [],
    "bench model": [
        "CONFIG",
        "KEY=VALUE",
        "--length",
        "--steps",
        "--warmup",
        "--threads",
        "--document-tokens",
        "--profile",
        "--json",
    ],
    "submit": [],
    "submit pretrain": ["CONFIG", "KEY=VALUE", "--address", "--detach", "--fresh", "--stop-grace"],
    "submit finetune": ["CONFIG", "KEY=VALUE", "--address", "--detach", "--fresh", "--stop-grace"],
    "submit data": ["CONFIG", "KEY=VALUE", "--address", "--detach", "--fresh", "--stop-grace"],
    "jobs": [],
    "jobs list": ["--address", "--all", "--json"],
    "jobs status": ["JOB", "--address", "--json"],
    "jobs logs": ["JOB", "--address", "--follow"],
    "jobs stop": ["JOB", "--address", "--wait"],
    "config": [],
    "config show": ["CONFIG", "KEY=VALUE"],
    "config schema": ["KIND"],
}


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


def _parameter_name(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name).upper()


def test_verbs_and_options_are_as_frozen() -> None:
    found = {path: [_parameter_name(parameter) for parameter in command.params] for path, command in COMMANDS.items()}
    assert found == SURFACE


@pytest.mark.parametrize("path", SURFACE)
def test_help_explains_everything_with_a_sentence_and_verbs_with_examples(path: str) -> None:
    command = COMMANDS[path]
    explained = [command.help, *(parameter.help for parameter in command.params)]
    assert all(text and text[0].isupper() and text.rstrip().endswith(".") for text in explained), explained
    if not hasattr(command, "commands"):
        assert f"longhaul {path}" in command.epilog
    result = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(app, [*path.split(), "--help"])
    assert result.exit_code == 0
    assert all(option in result.stdout for option in SURFACE[path] if option.startswith("--"))


@pytest.mark.parametrize("path", [path for path, command in COMMANDS.items() if not hasattr(command, "commands")])
def test_examples_in_help_parse(path: str) -> None:
    examples = [line for line in COMMANDS[path].epilog.splitlines() if line.lstrip().startswith("[bold]longhaul")]
    assert examples
    for line in examples:
        words = shlex.split(line.strip().removeprefix("[bold]").removesuffix("[/bold]").split(" > ")[0])
        arguments = words[1 + len(path.split()) :]
        COMMANDS[path].make_context(path, arguments)


def test_help_is_quick() -> None:
    best = min(_seconds_of_help() for _ in range(3))
    assert best < HELP_SECONDS


def _seconds_of_help() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "launcher", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("path", SURFACE)
def test_help_imports_nothing_heavy(path: str) -> None:
    code = (
        "import sys, launcher.__main__ as m\n"
        f"sys.argv = ['longhaul', *{path.split()!r}, '--help']\n"
        "try: m.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # below the top level typer itself imports pydantic, to convert arguments
    heavy = HEAVY if path else HEAVY | {"pydantic"}
    assert not heavy & set(result.stderr.split())


def test_console_script_and_module_are_the_same_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"longhaul": "launcher.__main__:main"}
    result = subprocess.run(
        [sys.executable, "-m", "launcher", "config", "show", "smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert result.stdout.startswith("name: smoke\n")
