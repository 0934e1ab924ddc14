"""Faults put into training workers from outside the product: code that every Python process of a command runs first."""

from __future__ import annotations

from pathlib import Path

_STARTUP = """
import importlib.abc, importlib.util, os, sys, time

class _Patch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {name!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            patch(module)
        spec.loader.exec_module = exec_module
        return spec

def patch(module):
{statements}

sys.meta_path.insert(0, _Patch())
"""
_BEFORE_EACH_STEP = """take = module.WorkInHand.take
def take_and_fail(work, batch):
    take(work, batch)
    rows = len(batch.micro_batches[0].tokens)
{fault}
module.WorkInHand.take = take_and_fail"""


def startup_code(fault: str) -> str:
    """Code for sitecustomize.py.

    Args:
        fault: Statements that every rank runs before a step, with `batch` and the `rows` of a micro-batch at hand.
    """
    return code_after_import("cluster.faults.work_in_hand", _BEFORE_EACH_STEP.format(fault=_indented(fault)))


def code_after_import(name: str, statements: str) -> str:
    """Code for sitecustomize.py that runs statements as soon as a module is imported, with it at hand as `module`."""
    return _STARTUP.format(name=name, statements=_indented(statements))


def inject(directory: Path, fault: str) -> dict[str, str]:
    """Environment of a command on a private cluster whose workers run a fault before each step."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(startup_code(fault))
    return {"PYTHONPATH": str(directory)}


def _indented(statements: str) -> str:
    return "\n".join(f"    {line}" for line in statements.splitlines())
