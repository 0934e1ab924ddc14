"""Ray Train at work, seen from the driver: a cluster, messages in, events and progress out, signals obeyed."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.errors import ClusterError, ResourcesError, TrainingFailedError
from cluster.record import EventsLog
from cluster.wandb_mirror import TrackingSettings

Listener = Callable[[dict[str, Any]], None]

_POLL_SECONDS = 0.2
_SAME_WISH_SECONDS = 1.0
_FATAL_GRACE_SECONDS = 15.0
_RAY_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set before Ray is imported; each is a trap of Ray 2.60: slow polls, changed directories, doubled output, and a second
cluster that starts by itself when a thread asks for something after the shutdown."""


def train_on_ray(
    config: RunConfig, address: str | None, tracking: TrackingSettings, events: EventsLog, listener: Listener
) -> dict[str, Any]:
    """Train on Ray Train workers until the run ends or is stopped.

    Args:
        config: The run, its directory created.
        address: A running cluster; None starts a private one on this machine.
        tracking: W&B settings.
        events: Log of the run's events.
        listener: Gets messages as they come, in the calling thread.

    Returns:
        Rank 0's result: step and finished.

    Raises:
        ResourcesError: The cluster has less than the run asks for.
        TrainingFailedError: Workers failed too often, or the cluster did.
    """
    with _ray_session(address):
        from ray.exceptions import RayError

        gpus = _gpus_per_worker(config, listener)
        try:
            return _Session(config, tracking, events, listener).run(gpus)
        except RayError as error:
            raise TrainingFailedError(
                f"the Ray cluster failed under the run: {error}. The same command continues from the last checkpoint."
            ) from error


@contextmanager
def _ray_session(address: str | None) -> Iterator[None]:
    """A connection to a cluster, or a private cluster of this machine that ends with the command."""
    for key, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if address is None:  # the processes of a private cluster inherit this; a submitted job brings its working directory
        package_root = str(Path(__file__).resolve().parent.parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    import ray

    ray.init(
        address=address or "local",
        logging_level=logging.ERROR,
        log_to_driver=False,
        **({} if address else {"include_dashboard": False}),
    )
    try:
        yield
    finally:
        ray.shutdown()


def _gpus_per_worker(config: RunConfig, listener: Listener) -> int:
    """Compare what the run asks for with what the cluster's nodes have, and resolve `auto`.

    Raises:
        ResourcesError: It asks for more.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = config.resources
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    per_worker: int
    if wanted.gpus_per_worker == "auto":
        per_worker = 1 if gpus else 0
        reason = f"the cluster has {gpus} GPUs" if gpus else "the cluster has no GPU"
        listener({"type": "phase", "text": f"resources.gpus_per_worker auto is {per_worker}: {reason}"})
    else:
        per_worker = wanted.gpus_per_worker
    room = sum(
        min(
            int(node.get("CPU", 0)) // wanted.cpus_per_worker,
            int(node.get("GPU", 0)) // per_worker if per_worker else wanted.workers,
        )
        for node in nodes
    )
    if room < wanted.workers:
        cpus = int(sum(node.get("CPU", 0) for node in nodes))
        raise ResourcesError(
            f"the run asks for {wanted.workers} workers of {wanted.cpus_per_worker} CPUs and {per_worker} GPUs, and "
            f"the cluster has room for {room} ({len(nodes)} nodes, {cpus} CPUs, {gpus} GPUs): it would wait for ever. "
            "Lower resources.workers or cpus_per_worker, set gpus_per_worker=0 to train on CPUs, or add nodes."
        )
    return per_worker


class _Session:
    """Ray Train at work, seen from the driver: messages in, events and progress out, signals obeyed."""

    def __init__(self, config: RunConfig, tracking: TrackingSettings, events: EventsLog, listener: Listener) -> None:
        from cluster.mailbox import start_mailbox

        self._config = config
        self._events = events
        self._listener = listener
        self._mailbox = start_mailbox()
        self._tracking = tracking
        self._result: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._fatal: str | None = None
        self._fatal_since: float | None = None
        self._stop_asked: float | None = None
        self._stop_passed_on = False
        self._end_asked = False

    def run(self, gpus_per_worker: int) -> dict[str, Any]:
        self._listener({"type": "phase", "text": "starting workers"})
        thread = threading.Thread(target=self._fit, args=(gpus_per_worker,), name="ray-train", daemon=True)
        with self._signals():
            thread.start()
            while thread.is_alive() and not self._gave_up():
                thread.join(_POLL_SECONDS)
                self._handle_messages()
                self._obey_signals()
        self._handle_messages()
        if self._fatal is not None:
            raise ClusterError(self._fatal)
        if self._error is not None:
            raise TrainingFailedError(_explain(self._error, self._config)) from self._error
        assert self._result is not None
        return self._result

    def _fit(self, gpus_per_worker: int) -> None:
        from cluster.ray_worker import WorkerOrder, fit

        scratch = Path(self._config.storage) / self._config.name / ".ray"
        name = f"driver-{os.getpid()}-{secrets.token_hex(4)}"
        order = WorkerOrder(config=self._config, tracking=self._tracking, mailbox=self._mailbox)
        try:
            self._result = fit(order, gpus_per_worker=gpus_per_worker, name=name, scratch=scratch)
        except Exception as error:  # noqa: BLE001 - raised in the main thread, with the story told
            self._error = error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _handle_messages(self) -> None:
        import ray

        for message in ray.get(self._mailbox.drain.remote()):
            kind = message["type"]
            if kind == "fatal":
                self._fatal = self._fatal or message["text"]
                self._fatal_since = self._fatal_since or time.monotonic()
                continue
            if kind == "event":
                details = {key: value for key, value in message.items() if key not in ("type", "event")}
                message = {"type": "event", **self._events.write(message["event"], **details)}
            self._listener(message)

    def _obey_signals(self) -> None:
        if self._end_asked:
            self._listener(
                {"type": "phase", "text": "ending at once; the same command continues from the last checkpoint"}
            )
            raise KeyboardInterrupt
        if self._stop_asked is not None and not self._stop_passed_on:
            self._stop_passed_on = True
            self._mailbox.request_stop.remote()
            self._listener({"type": "phase", "text": "stopping: saving a checkpoint (again to end at once)"})

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


def _explain(error: Exception, config: RunConfig) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    if failures:
        lines = [f"workers failed more often than resources.max_failures = {config.resources.max_failures} allows."]
        lines += [f"rank {rank}: {failure}" for rank, failure in sorted(failures.items())]
    else:
        lines = [f"Ray Train could not go on: {error}"]
    lines.append("Checkpoints up to the last saved one are whole; the same command continues from there.")
    return "\n".join(lines)
