"""Lets a test stop the product's processes at named moments and turn their clocks; Python loads it at start-up.

A cluster under test has a `sitecustomize` that imports this, and CHAOS_DIRECTORY in its environment. The test and the
processes talk through files there: `control.json` says at which points a process stands still, `reached/` says who
stands where, `clock` holds the seconds by which clocks are wrong. Nothing of the product knows of it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = "CHAOS_DIRECTORY"
PLACE = "CHAOS_PLACE"
"""Names a machine that a driver takes itself to run on."""
GATES = "CHAOS_GATES"
"""`off` lets a command and its private cluster pass all gates."""
CONTROL_NAME, REACHED_NAME, CLOCK_NAME = "control.json", "reached", "clock"
_LONGEST_STAND_SECONDS = 120.0
_LOOK_SECONDS = 0.01
_CLOCK_SECONDS = 0.1
_STEP_DIRECTORY = re.compile(r"step-(\d{8})")

Subject = Callable[[tuple[Any, ...]], int | None]
"""From a call's arguments to the step that it is about; None where the call is of no interest."""


def _any(arguments: tuple[Any, ...]) -> int | None:
    return 0


def _batch(arguments: tuple[Any, ...]) -> int | None:
    return int(arguments[1].step)


def _file(arguments: tuple[Any, ...]) -> int | None:
    match = _STEP_DIRECTORY.search(str(arguments[0]))
    return int(match[1]) if match else None


def _whole_checkpoint(arguments: tuple[Any, ...]) -> int | None:
    return _file(arguments) if _STEP_DIRECTORY.fullmatch(str(arguments[0]).rpartition("/")[2]) else None


def _last_event(arguments: tuple[Any, ...]) -> int | None:
    return 0 if arguments[1] == "finished" else None


@dataclass(frozen=True)
class Point:
    """A place in the product where a process can be made to stand."""

    module: str
    attribute: str
    subject: Subject
    after: bool = False
    """Whether it stands after the call instead of before it."""


POINTS: dict[str, Point] = {
    "step": Point("cluster.faults.work_in_hand", "WorkInHand.take", _batch),
    "save": Point("cluster.checkpoint.part", "write_tensors", _file),
    "written": Point("cluster.checkpoint.part", "write_tensors", _file, after=True),
    "publish": Point("cluster.checkpoint.writer", "write_if_unchanged", _file),
    "published": Point("cluster.checkpoint.writer", "write_if_unchanged", _file, after=True),
    "retention": Point("cluster.checkpoint.catalog", "remove_tree", _whole_checkpoint),
    "load": Point("cluster.checkpoint.reader", "CheckpointReader.read_into", _any),
    "restart": Point("cluster.attempt", "Workshop.__init__", _any),
    "lease": Point("cluster.lease", "_create", _any, after=True),
    "end": Point("cluster.record.logs", "EventsLog.write", _last_event),
}


def install(directory: Path) -> None:
    """Turn this process's clock with the test's, and stand at its gates."""
    _turn_clock(directory / CLOCK_NAME)
    wanted: dict[str, list[Callable[[Any], None]]] = {}
    if os.environ.get(GATES) != "off":
        for name, point in POINTS.items():
            wanted.setdefault(point.module, []).append(functools.partial(_wrap, directory, name, point))
    if PLACE in os.environ:
        wanted.setdefault("cluster.lease", []).append(_move)
    wanted["ray._private.services"] = [_be_patient]
    sys.meta_path.insert(0, _AfterImport(wanted))


def owner_of(module: Any, attribute: str) -> tuple[Any, str]:
    """The object that holds a dotted attribute of a module, and the attribute's own name."""
    *path, name = attribute.split(".")
    return functools.reduce(getattr, path, module), name


def _turn_clock(path: Path) -> None:
    real_time, real_time_ns, monotonic = time.time, time.time_ns, time.monotonic
    known = {"seconds": 0.0, "until": 0.0}

    def offset() -> float:
        now = monotonic()
        if now >= known["until"]:
            known["until"] = now + _CLOCK_SECONDS
            try:
                known["seconds"] = float(path.read_text() or 0.0)
            except (OSError, ValueError):
                known["seconds"] = 0.0
        return known["seconds"]

    time.time = lambda: real_time() + offset()
    time.time_ns = lambda: real_time_ns() + int(offset() * 1e9)


def _move(module: Any) -> None:
    module._place = lambda: os.environ[PLACE]


def _be_patient(module: Any) -> None:
    """On a busy machine Ray's own processes give each other up after 30 s while they start."""
    module.get_node_with_retry.__defaults__ = (300, 1)


def _wrap(directory: Path, name: str, point: Point, module: Any) -> None:
    owner, attribute = owner_of(module, point.attribute)
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if not point.after:
            _stand(directory, name, point.subject(arguments))
        result = original(*arguments, **keywords)
        if point.after:
            _stand(directory, name, point.subject(arguments))
        return result

    setattr(owner, attribute, call)


def _stand(directory: Path, point: str, step: int | None) -> None:
    """Stand still while a gate of this point is shut."""
    if step is None:
        return
    deadline = time.monotonic() + _LONGEST_STAND_SECONDS
    control = _control(directory)
    if point == "step":
        time.sleep(control.get("pace_seconds", 0.0))
    for gate in control.get("gates", []):
        if gate["point"] != point or step < gate["from_step"]:
            continue
        (directory / REACHED_NAME / f"{gate['name']}.{os.getpid()}").write_text(str(step))
        while gate in _control(directory).get("gates", []) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)


def _control(directory: Path) -> dict[str, Any]:
    try:
        control: dict[str, Any] = json.loads((directory / CONTROL_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return control


class _AfterImport(importlib.abc.MetaPathFinder):
    """Changes modules right after they were imported."""

    def __init__(self, wanted: dict[str, list[Callable[[Any], None]]]) -> None:
        self._wanted = wanted

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        changes = self._wanted.get(name)
        if changes is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                self._extend(spec.loader, changes)
                return spec
        return None

    @staticmethod
    def _extend(loader: Any, changes: list[Callable[[Any], None]]) -> None:
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            for change in changes:
                change(module)

        loader.exec_module = exec_module


if DIRECTORY in os.environ:
    install(Path(os.environ[DIRECTORY]))
