"""The check that the four packages belong together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launcher.packages import PACKAGES, disagreement

HOME = Path("/home")


def test_disagreement_is_none_when_all_share_one_root() -> None:
    assert disagreement(dict.fromkeys(PACKAGES, HOME)) is None


def test_disagreement_names_the_package_that_comes_from_elsewhere() -> None:
    roots = {**dict.fromkeys(PACKAGES, HOME), "llm": Path("/site-packages")}
    assert disagreement(roots) == (
        "the package 'llm' comes from /site-packages, but 'launcher' from /home: another distribution has a "
        "package of the same name. Remove it from this environment, or install Longhaul in a fresh one."
    )


def test_disagreement_names_the_package_that_is_missing() -> None:
    roots = {**dict.fromkeys(PACKAGES, HOME), "cluster": None}
    assert disagreement(roots) == (
        "the package 'cluster' is missing beside 'launcher' in /home. "
        "Install Longhaul again (python -m pip install -e . in its directory)."
    )


def test_command_line_refuses_to_start_when_another_llm_is_in_front(tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "__init__.py").write_text("raise SystemExit('imported')")
    root = Path(__file__).parents[3]
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]; from launcher.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: the package 'llm' comes from {tmp_path}, but 'launcher' from {root}")
