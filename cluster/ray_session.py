"""Ray Train at work, seen from the driver: messages in, events and progress out, signals obeyed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.errors import TrainingFailedError
from cluster.lease import Lease
from cluster.ray_cluster import free_placement_groups, live_nodes, room_for_workers
from cluster.record import EventsLog
from cluster.run_directory import PUBLISHED_STEP, RunDirectory
from cluster.wandb_mirror import TrackingSettings

Listener = Callable[[dict[str, Any]], None]

_POLL_SECONDS = 0.2
_SAME_WISH_SECONDS = 1.0
_FATAL_GRACE_SECONDS = 15.0
_ROOM_CHECK_SECONDS = 15.0
_BEGINNINGS = ("started", "resumed")


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What the driver has before it while workers train."""

    lease: Lease
    """Checked before anything is written."""
    tracking: TrackingSettings
    """W&B settings."""
    events: EventsLog
    """Log of the run's events."""
    listener: Listener
    """Gets messages as they come, in the calling thread."""
    private_cluster: bool
    """Whether the cluster ends with the command."""
    job: dict[str, str]
    """Submission that the driver runs as, put into the events that begin an attempt; empty outside a Ray job."""


def train_on_ray(config: RunConfig, desk: Desk, *, gpus_per_worker: int) -> dict[str, Any]:
    """Train on Ray Train workers until the run ends or is stopped.

    Args:
        config: The run, its directory created.
        desk: Of the driver.
        gpus_per_worker: 0 or 1.

    Returns:
        Rank 0's result: step and finished.

    Raises:
        RunBusyError: Another driver took the run.
        TrainingFailedError: Workers failed too often, or the cluster did.
    """
    return _Session(config, desk).run(gpus_per_worker)


class _Session:
    """Ray Train at work, seen from the driver: messages in, events and progress out, signals obeyed."""

    def __init__(self, config: RunConfig, desk: Desk) -> None:
        from cluster.mailbox import start_mailbox

        self._config = config
        self._desk = desk
        self._listener = desk.listener
        self._mailbox = start_mailbox()
        self._last_message = time.monotonic()
        self._next_room_check = 0.0
        self._result: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._fatal: str | None = None
        self._fatal_since: float | None = None
        self._stop_asked: float | None = None
        self._stop_told = False
        self._end_asked = False
        self._training = False

    def run(self, gpus_per_worker: int) -> dict[str, Any]:
        with self._signals():
            while not self._ended(gpus_per_worker):
                self._listener({"type": "phase", "text": "Ray's controller was lost: starting workers anew"})
        if self._fatal is not None:
            raise TrainingFailedError(self._fatal)
        if self._error is not None:
            raise TrainingFailedError(_explain(self._error)) from self._error
        assert self._result is not None
        return self._result

    def _ended(self, gpus_per_worker: int) -> bool:
        """Train until Ray Train ends; False where only its controller was lost, so that the run goes on."""
        import ray
        from ray.exceptions import RayActorError

        self._listener({"type": "phase", "text": "starting workers"})
        self._error = None
        thread = threading.Thread(target=self._fit, args=(gpus_per_worker,), name="ray-train", daemon=True)
        thread.start()
        while thread.is_alive() and not self._gave_up():
            thread.join(_POLL_SECONDS)
            self._handle_messages()
            self._obey_signals()
            self._watch_room(gpus_per_worker)
            if self._stop_asked is not None and not self._training:  # nothing was learned since the last checkpoint
                self._result = {"step": self._published_step(), "finished": False}
                return True
        self._handle_messages()
        if self._fatal is not None or not isinstance(self._error, RayActorError):
            return True
        self._desk.lease.check()
        self._write_event({"event": "worker_lost", "causes": {"controller": "Ray Train's controller died"}})
        if self._desk.private_cluster:
            free_placement_groups()
        return not ray.get(self._mailbox.may_retry.remote(self._config.resources.max_failures))

    def _fit(self, gpus_per_worker: int) -> None:
        scratch = self._run_directory / ".ray"
        name = f"driver-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            from cluster.ray_worker import WorkerOrder, fit

            order = WorkerOrder(
                config=self._config,
                tracking=replace(self._desk.tracking, api_key=None),  # the mailbox has it: Ray may record what it sees
                mailbox=self._mailbox,
                holder=self._desk.lease.holder,
            )
            self._result = fit(order, gpus_per_worker=gpus_per_worker, name=name, scratch=scratch)
        except Exception as error:  # noqa: BLE001 - raised in the main thread, with the story told
            self._error = error
        finally:
            shutil.rmtree(scratch / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                scratch.rmdir()  # unless another driver's notes lie there

    def _handle_messages(self) -> None:
        import ray

        stop = self._stop_asked is not None
        for message in ray.get(self._mailbox.exchange.remote(stop, self._desk.tracking.api_key)):
            self._last_message = time.monotonic()
            kind = message["type"]
            if kind == "fatal":
                self._fatal = self._fatal or message["text"]
                self._fatal_since = self._fatal_since or time.monotonic()
                continue
            if kind == "event":
                self._write_event(message)
            else:
                self._listener(message)

    def _write_event(self, message: dict[str, Any]) -> None:
        """Put an event of a worker into the record, if the run is still ours, and pass it on."""
        self._desk.lease.check()
        name = message["event"]
        details = {key: value for key, value in message.items() if key not in ("type", "event")}
        if name in _BEGINNINGS:
            self._training = True
            details |= self._desk.job
        elif name == "worker_lost":
            self._training = False
        self._listener({"type": "event", **self._desk.events.write(name, **details)})

    def _obey_signals(self) -> None:
        if self._end_asked:
            text = "ending at once; the same command continues from the last checkpoint, if there is one"
            self._listener({"type": "phase", "text": text})
            raise KeyboardInterrupt
        if self._stop_asked is not None and not self._stop_told:
            self._stop_told = True
            doing = "saving a checkpoint (again to end at once)" if self._training else "nothing new is to be saved"
            self._listener({"type": "phase", "text": f"stopping: {doing}"})

    def _watch_room(self, gpus_per_worker: int) -> None:
        """Check the lease and, where workers were lost and none came back, say what the run waits for."""
        now = time.monotonic()
        if now < self._next_room_check:
            return
        self._next_room_check = now + _ROOM_CHECK_SECONDS
        self._desk.lease.check()
        if now - self._last_message < _ROOM_CHECK_SECONDS:
            return
        wanted = self._config.resources
        nodes = live_nodes()
        room = room_for_workers(nodes, cpus_per_worker=wanted.cpus_per_worker, gpus_per_worker=gpus_per_worker)
        if room < wanted.workers:
            self._listener(
                {
                    "type": "phase",
                    "text": f"waiting for a node: the run needs room for {wanted.workers} workers, the {len(nodes)} "
                    f"live nodes have room for {room}",
                }
            )

    @property
    def _run_directory(self) -> Path:
        return Path(self._config.storage) / self._config.name

    def _published_step(self) -> int:
        """Step of the run's last checkpoint; 0 where there is none."""
        return int(RunDirectory(self._run_directory).facts().get(PUBLISHED_STEP, 0))

    def _gave_up(self) -> bool:
        """Whether the workers were told of an error that ends the run, and Ray Train still has not ended."""
        return self._fatal_since is not None and time.monotonic() - self._fatal_since > _FATAL_GRACE_SECONDS

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM saves and stops; another one, a second later or more, ends at once.

        Some senders signal a process and then its group: their two signals mean one wish.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self._stop_asked is None:
                self._stop_asked = time.monotonic()
            elif time.monotonic() - self._stop_asked > _SAME_WISH_SECONDS:
                self._end_asked = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _explain(error: Exception) -> str:
    return (
        f"Ray Train could not go on: {error}\n"
        "Checkpoints up to the last saved one are whole; the same command continues from there."
    )
