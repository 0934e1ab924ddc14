"""The run under chaos: its command, given again as a person would, and what it left."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_cluster import Stage
from processes import start
from scenarios import CHECKPOINT_EVERY, STEPS, Tracking
from wandb_server import WandbServer

from cluster.record.logs import DISCARDED_NAME, EVENTS_NAME, METRICS_NAME, deterministic_fields, read_lines
from cluster.storage.operations import StoragePath

KEEP_LAST = 2
_COMMANDS = 8
_COMMAND_SECONDS = 300.0


@dataclass
class ChaosRun:
    """A run and the command that works on it at present."""

    stage: Stage
    name: str
    storage: StoragePath
    dataset: Path
    log: Path
    tracking: Tracking = "disabled"
    as_job: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    """Put into the command's environment."""
    wandb_server: WandbServer | None = None
    process: subprocess.Popen[bytes] | None = None
    commands: int = 0
    """How often the command was given."""

    @property
    def directory(self) -> StoragePath:
        """The run's directory."""
        return self.storage / self.name

    @property
    def settings(self) -> list[str]:
        """Configuration."""
        return [
            "smoke",
            f"name={self.name}",
            f"storage={self.storage}",
            f"data.dataset={self.dataset}",
            f"train.max_steps={STEPS}",
            f"checkpoint.every_steps={CHECKPOINT_EVERY}",
            f"checkpoint.keep_last={KEEP_LAST}",
            f"wandb.mode={self.tracking}",
        ]

    def start(self) -> subprocess.Popen[bytes]:
        """Give the command."""
        self.commands += 1
        self.process = self.command()
        return self.process

    def command(self, *, log: Path | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command for this run beside whatever works on it already."""
        cluster = self.stage.cluster
        around = {**cluster.environment, **self.environment, **environment}
        if self.as_job:
            arguments = ["submit", "pretrain", *self.settings, "--address", cluster.url]
        else:
            arguments = ["pretrain", *self.settings]
            around = {"RAY_ADDRESS": f"127.0.0.1:{cluster.port}", **around}
        return start(*arguments, log=log or self.log, environment=around)

    def kill(self) -> None:
        """SIGKILL the driver, and nothing else."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def wait(self, seconds: float = _COMMAND_SECONDS) -> int:
        """Wait for the command; gives its exit code."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self.process = None
        return code

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 180.0) -> None:
        """Wait for a moment; a command that ended with an error before is given again, as a person would."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process is None or self.process.poll() not in (None, 0):
                self._again()
            if self.process is not None and self.process.poll() == 0:
                raise AssertionError(f"the run ended before this moment came: {what}")
            if time.monotonic() > deadline:
                raise AssertionError(f"this moment did not come within {seconds:.0f} s: {what}")
            time.sleep(0.005)

    def finish(self) -> None:
        """Give the command until it ends well."""
        while True:
            if self.process is None:
                self._again()
            if self.wait() == 0:
                return

    def _again(self) -> None:
        if self.commands >= _COMMANDS:
            raise AssertionError(f"the command was given {self.commands} times, and the run did not finish")
        self.start()

    @property
    def record(self) -> list[dict[str, Any]]:
        """Deterministic fields of every line of metrics."""
        return [deterministic_fields(row) for row in read_lines(self.directory / METRICS_NAME)]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its events."""
        return read_lines(self.directory / EVENTS_NAME)

    @property
    def discarded(self) -> list[dict[str, Any]]:
        """Lines that no longer count."""
        return read_lines(self.directory / DISCARDED_NAME)

    def close(self) -> None:
        """End the command, where it still works."""
        self.kill()
        if self.wandb_server is not None:
            self.wandb_server.close()
