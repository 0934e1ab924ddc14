"""The test's side of the gates and clocks that `chaos_injection` puts into the product's processes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_injection import CLOCK_NAME, CONTROL_NAME, REACHED_NAME

PACE_SECONDS = 0.03
"""Added to each step: without it a run of twenty tiny steps is over before anything can happen to it."""


@dataclass
class Gates:
    """Gates that are shut now, and where processes stand."""

    directory: Path
    _shut: dict[str, dict[str, Any]] = field(default_factory=dict)
    _count: int = 0

    def shut(self, point: str, from_step: int) -> str:
        """Shut a gate: every process that comes to the point from this step on stands there. Returns its name."""
        self._count += 1
        name = f"gate-{self._count}"
        self._shut[name] = {"name": name, "point": point, "from_step": from_step}
        self._publish()
        return name

    def open(self, name: str) -> None:
        """Let those who stand at a gate go on."""
        self._shut.pop(name, None)
        self._publish()

    def standing(self, name: str) -> list[int]:
        """Process ids of all who came to a gate, in the order in which they came."""
        marks = sorted((self.directory / REACHED_NAME).glob(f"{name}.*"), key=lambda mark: mark.stat().st_mtime)
        return [int(mark.suffix[1:]) for mark in marks]

    def step(self, name: str) -> int:
        """The step that those who stand at a gate are at."""
        return max(int(mark.read_text() or 0) for mark in (self.directory / REACHED_NAME).glob(f"{name}.*"))

    def turn_clocks(self, seconds: float) -> None:
        """Make the clocks of all processes wrong by so many seconds."""
        self._replace(CLOCK_NAME, str(seconds))

    def reset(self) -> None:
        """Open all gates and set the clocks right."""
        reached = self.directory / REACHED_NAME
        reached.mkdir(parents=True, exist_ok=True)
        for mark in reached.iterdir():
            mark.unlink()
        self._shut.clear()
        self._publish()
        self.turn_clocks(0.0)

    def _publish(self) -> None:
        self._replace(CONTROL_NAME, json.dumps({"pace_seconds": PACE_SECONDS, "gates": list(self._shut.values())}))

    def _replace(self, name: str, text: str) -> None:
        temporary = self.directory / f".{name}"
        temporary.write_text(text)
        os.replace(temporary, self.directory / name)
