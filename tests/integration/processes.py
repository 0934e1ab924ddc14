"""The command as a person starts it, and its processes as an accident finds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def start(*arguments: str, log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start `python -m launcher ARGUMENTS`, its output going to a file."""
    outside = ("RAY_", "WANDB_", "CUDA_")  # what the person running the tests has set is not part of the test
    env = {key: value for key, value in os.environ.items() if not key.startswith(outside)} | (environment or {})
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *arguments],
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).resolve().parents[2],
        env=env,
    )


def finish(process: subprocess.Popen[bytes], log: Path, timeout_seconds: float = 240) -> int:
    """Wait for the command; its output belongs to the failure."""
    code = process.wait(timeout_seconds)
    if code != 0:
        print(log.read_text(errors="replace")[-6000:])
    return code


def descendants(pid: int) -> list[int]:
    """Process ids of all children of a process, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def training_workers(pid: int) -> list[int]:
    """Process ids of the Ray Train workers of a command."""
    return actors(pid, "RayTrainWorker")


def actors(pid: int, name: str) -> list[int]:
    """Process ids of a command's Ray actors of a class."""
    found = []
    for child in descendants(pid):
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if f"ray::{name}".encode() in title:
            found.append(child)
    return found


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes], timeout_seconds: float = 180) -> None:
    """Wait for a condition while the command runs."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the command ended with {process.returncode} before the moment came")
        if time.monotonic() > deadline:
            raise AssertionError("the moment did not come")
        time.sleep(0.002)


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
