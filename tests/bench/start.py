"""Where the seconds go between the command and its first new optimizer step, fresh and resumed.

    python -m tests.bench.start

Trains the recipe `smoke` on a private cluster for some steps, and gives the same command again with more of them. Each
phase is timed by when its first line comes out of the command.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHASES = (
    ("Python, imports and data", "starting Ray"),
    ("Ray", "starting workers"),
    ("workers", "opening the data"),
    ("data", "building the model"),
    ("model and engine", "loading the state"),
    ("state", "training"),
    ("first step", "step "),
)
STEPS = 10


def time_phases(storage: Path, max_steps: int) -> list[tuple[str, float]]:
    """Seconds of each phase of one start."""
    command = [sys.executable, "-u", "-m", "launcher", "pretrain", "smoke", f"storage={storage}"]
    settings = [f"train.max_steps={max_steps}", "schedule.name=constant", "wandb.mode=disabled"]
    begun = last = time.perf_counter()
    process = subprocess.Popen([*command, *settings], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    phases = []
    waiting = list(PHASES)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if waiting and line.startswith(waiting[0][1]) and "continuing" not in line and "started" not in line:
            now = time.perf_counter()
            phases.append((waiting.pop(0)[0], now - last))
            last = now
    if process.wait() != 0 or waiting:
        raise SystemExit("".join(lines))
    return [*phases, ("in all", last - begun)]


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory(prefix="start-") as directory:
        storage = Path(directory)
        time_phases(storage / "warm", STEPS)  # builds the sample, and reads every file once
        (storage / "runs").mkdir()
        (storage / "warm" / ".datasets").rename(storage / "runs" / ".datasets")
        starts = [time_phases(storage / "runs", STEPS), time_phases(storage / "runs", 2 * STEPS)]
    print(f"{'seconds':26}{'fresh':>8}{'resumed':>10}")
    for (name, fresh), (_, resumed) in zip(*starts, strict=True):
        print(f"{name:26}{fresh:8.1f}{resumed:10.1f}")


if __name__ == "__main__":
    main()
