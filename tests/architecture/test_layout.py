"""Where things may lie, what they may be called, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("launcher", "llm", "data_pipeline", "cluster")
TOP_LEVEL = {
    *PACKAGES,
    "tests",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "NOTICE",
    "requirements.lock",
}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
LONGEST_INIT_LINES = 40
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tracked() -> list[str]:
    """Files that git would carry; in a checkout without git, all."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    return result.stdout.splitlines()


def test_top_level_has_only_its_given_entries() -> None:
    entries = {path.split("/")[0] for path in _tracked()}
    assert {entry for entry in entries if not entry.startswith(".")} <= TOP_LEVEL


def test_modules_are_named_after_their_subject() -> None:
    assert not [_name(path) for path in MODULES if VAGUE_NAMES & {path.stem, path.parent.name}]


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=_name)
def test_init_files_only_export(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_INIT_LINES
    statements = [type(node) for node in ast.parse(text).body]
    assert set(statements) <= {ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign}


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "launcher"])
def test_nothing_below_launcher_prints(package: str) -> None:
    printing = [
        f"{_name(path)}:{node.lineno}"
        for path in MODULES
        if path.is_relative_to(ROOT / package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_every_package_directory_is_listed_for_installation() -> None:
    found = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in MODULES}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_imports_follow_the_arrows() -> None:
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("importer", "library"),
    [
        ({"cluster/engines/deepspeed_engine.py", "cluster/engines/deepspeed_partitions.py"}, "deepspeed"),
        ({"cluster/on_ray/worker.py"}, "ray.train"),
        ({"launcher/harness.py"}, "lm_eval"),
    ],
)
def test_only_its_adapter_imports_a_library(importer: set[str], library: str) -> None:
    assert {_name(path) for path in MODULES if library in _imports(path)} <= importer


def _imports(path: Path) -> set[str]:
    """Modules that a file imports, with their parents."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
