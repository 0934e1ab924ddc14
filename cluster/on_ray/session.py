"""Ray Train at work, seen from the driver: messages in, events and progress out, signals obeyed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import RunConfig
from cluster.errors import RunBusyError, TrainingFailedError
from cluster.evaluation.beside import EVALUATIONS_WANTED
from cluster.faults.failure import WorkerFailure
from cluster.faults.hang_watch import HangWatch, Tell
from cluster.faults.inquest import Inquest
from cluster.faults.verdicts import Verdicts
from cluster.lease import Lease
from cluster.on_ray.evaluator import Evaluator, task_needs
from cluster.on_ray.nodes import actor_is_dead, node_state_now, on_nodes
from cluster.on_ray.ray_cluster import free_placement_groups
from cluster.on_ray.room import Examine, Room, kind_of_devices
from cluster.on_ray.room_watch import RoomWatch
from cluster.on_ray.stop_wish import StopWish
from cluster.record.logs import EventsLog
from cluster.record.wandb_mirror import TrackingSettings
from cluster.run_directory import PUBLISHED_STEP, RunDirectory
from cluster.storage.operations import StoragePath, storage_path
from cluster.storage.scratch import scratch_directory

if TYPE_CHECKING:
    from cluster.on_ray.worker import GroupTerms

Listener = Callable[[dict[str, Any]], None]

_POLL_SECONDS = 0.2
_FATAL_GRACE_SECONDS = 15.0
_LEASE_CHECK_SECONDS = 15.0
_FREED_SECONDS = 5.0
"""Longest wait for Ray to count as free what workers that ended had reserved."""
_FAREWELL_SECONDS = 10.0
"""Longest wait for a controller that was ended while its workers were still starting."""
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
    examine: Examine = lambda node_id: None
    """Looks at nodes that join an elastic run."""
    failures: list[WorkerFailure] = field(default_factory=list)
    """How the last group of workers that failed ended, filled in by the session."""


def train_on_ray(config: RunConfig, desk: Desk, *, gpus_per_worker: int) -> dict[str, Any]:
    """Train on Ray Train workers until the run ends or is stopped.

    Args:
        config: The run, its directory created.
        desk: Of the driver.
        gpus_per_worker: 0 or 1.

    Returns:
        Rank 0's result: step, finished, and where it trained spent, the seconds of its end by their names in the
        record.

    Raises:
        RunBusyError: Another driver took the run.
        TrainingFailedError: Workers failed too often, or the cluster did.
    """
    return _Session(config, desk, gpus_per_worker).run()


class _Session:
    """Groups of workers, one after another, until the run ends."""

    def __init__(self, config: RunConfig, desk: Desk, gpus_per_worker: int) -> None:
        from cluster.on_ray.mailbox import start_mailbox

        self._config = config
        self._desk = desk
        self._gpus_per_worker = gpus_per_worker
        self._listener = desk.listener
        self._mailbox = start_mailbox()
        self._inquest = Inquest(is_dead=actor_is_dead, node_state=node_state_now)
        self._room = Room(
            config.resources,
            gpus_per_worker,
            desk.examine,
            spare=task_needs(config.evaluation, gpus_per_worker),
        )
        self._evaluator = Evaluator(
            config,
            gpus_per_worker,
            write_event=self._write_event,
            left_out=lambda: self._room.left_out,
        )
        self._watch = RoomWatch(config.resources, self._room, say=self._say, write_event=self._write_event)
        self._verdicts = Verdicts(config, self._run_directory, desk.failures, device=kind_of_devices(gpus_per_worker))
        self._hangs = HangWatch(
            self._run_directory,
            timeout_seconds=config.faults.hang_timeout_seconds,
            on_nodes=on_nodes,
            tell=Tell(
                event=self._write_event,
                failure=lambda each: self._inquest.take({"type": "failure", **asdict(each)}),
                say=self._say,
            ),
        )
        self._next_lease_check = 0.0
        self._controller: Any = None
        self._result: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._fatal_since: float | None = None
        self._stop = StopWish()
        self._stop_told = False
        self._training = False

    def run(self) -> dict[str, Any]:
        with self._stop.heard():
            while not self._group_ended_the_run():
                self._say("starting the workers anew")
        if self._verdicts.given_up is not None:
            raise TrainingFailedError(self._verdicts.given_up)
        if self._error is not None:
            raise TrainingFailedError(_explain(self._error)) from self._error
        assert self._result is not None
        return self._result

    def _group_ended_the_run(self) -> bool:
        """Train with one of Ray's controllers until that ends; False where another one goes on with the run."""
        from cluster.on_ray.worker import GroupTerms

        self._avoid_hung_nodes()
        workers = self._room.settle(self._watch.before, self._verdicts.lost_nodes, pause=self._pause)
        self._result, self._error, self._controller, self._fatal_since = None, None, None, None
        if self._stopped_before_training():
            return True
        self._desk.lease.check()
        terms = GroupTerms(workers=workers, gpus_per_worker=self._gpus_per_worker, left_out=self._room.left_out)
        self._say(f"starting {workers} workers" if self._room.elastic else "starting workers")
        self._watch.begin(workers)
        self._verdicts.begin(workers, self._say)
        self._tell_news()
        thread = threading.Thread(target=self._fit, args=(terms,), name="ray-train", daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not self._gave_up():
                self._attend(thread)
                if self._stopped_before_training():
                    self._end_controller(thread)
                    return True
        except RunBusyError:
            self._leave(thread)
            raise
        self._handle_messages()
        self._evaluator.give_way()
        ended = self._judge_end()
        self._watch.end(self._inquest.seats)
        self._inquest.close()
        self._hangs.forget()
        self._training = False
        return ended

    def _attend(self, thread: threading.Thread) -> None:
        """One round of what the driver does while workers train."""
        thread.join(_POLL_SECONDS)
        self._handle_messages()
        self._obey_signals()
        self._hangs.look()
        self._hold_inquest()
        if self._training:
            self._evaluator.look()
        else:
            self._evaluator.give_way()
        now = time.monotonic()
        if now >= self._next_lease_check:
            self._next_lease_check = now + _LEASE_CHECK_SECONDS
            self._desk.lease.check()
        if self._watch.look(self._inquest.seats, training=self._training) and self._controller is not None:
            import ray

            self._verdicts.decided = "refit"
            ray.kill(self._controller)

    def _hold_inquest(self) -> None:
        """Judge how workers ended, once enough is known of it."""
        case = self._inquest.case()
        if case is None:
            return
        event = self._verdicts.judge(case, self._inquest.seats, nodes_changed=self._room.nodes_changed)
        if case.fatal is None:
            self._write_event({"event": "worker_lost", **event})
        self._tell_news()
        self._training = False
        self._watch.end(self._inquest.seats)
        self._inquest.close()
        self._hangs.forget()

    def _tell_news(self) -> None:
        for event in self._verdicts.news():
            self._write_event(event)

    def _end_controller(self, thread: threading.Thread) -> None:
        """End Ray's controller before the connection to Ray ends: what it still said then would be Ray's own words."""
        import ray

        deadline = time.monotonic() + _FAREWELL_SECONDS
        ended = False
        while thread.is_alive() and time.monotonic() < deadline and not self._stop.at_once:
            if self._controller is not None and not ended:
                ray.kill(self._controller)
                ended = True
            thread.join(_POLL_SECONDS)
            self._handle_messages()
        self._error = None  # it is how the controller was ended

    def _leave(self, thread: threading.Thread) -> None:
        """End the workers of a run that is another's by now; a thread inside Ray may not survive its shutdown."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            if self._controller is not None:
                ray.kill(self._controller)
        thread.join(_FAREWELL_SECONDS)

    def _judge_end(self) -> bool:
        """Whether the run ends with the controller that just ended."""
        from ray.exceptions import RayActorError

        if self._inquest.fatal is not None:
            self._verdicts.give_up(self._inquest.fatal)
        if self._verdicts.given_up is not None:
            return True
        if self._result is not None:
            if not self._result["regroup"] or self._stop.asked:
                return True
            ended = {"step": self._result["step"], "reason": self._watch.reason, **self._result["spent"]}
            self._write_event({"event": "regrouped", **ended})
            return False
        planned = self._verdicts.decided == "refit"
        if isinstance(self._error, RayActorError):
            if self._desk.private_cluster:
                free_placement_groups()
            if not planned:
                self._desk.lease.check()
                self._write_event({"event": "worker_lost", **self._verdicts.controller_lost()})
            return self._verdicts.given_up is not None
        return not planned

    def _fit(self, terms: GroupTerms) -> None:
        directory = self._run_directory
        # Ray needs a file system for its notes, of which nothing is wanted after the controller that made them.
        scratch = (directory if isinstance(directory, Path) else scratch_directory(directory)) / ".ray"
        name = f"driver-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            from cluster.on_ray.worker import WorkerOrder, fit

            order = WorkerOrder(
                config=self._verdicts.config,
                tracking=replace(self._desk.tracking, api_key=None),  # the mailbox has it: Ray may record what it sees
                mailbox=self._mailbox,
                holder=self._desk.lease.holder,
            )
            self._result = fit(order, terms, name=name, scratch=scratch)
        except Exception as error:  # noqa: BLE001 - raised in the main thread, with the story told
            self._error = error
        finally:
            shutil.rmtree(scratch / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                scratch.rmdir()  # unless another driver's notes lie there

    def _handle_messages(self) -> None:
        import ray

        from cluster.on_ray.mailbox import Orders, Wishes

        orders = Orders(
            wishes=Wishes(stop=self._stop.asked, regroup=self._watch.regroup, evaluations=self._evaluator.outcomes()),
            verdicts=self._verdicts.by_number,
            wandb_key=self._desk.tracking.api_key,
        )
        for message in ray.get(self._mailbox.exchange.remote(orders)):
            self._watch.heard()
            if self._inquest.take(message):
                if self._inquest.fatal is not None:
                    self._fatal_since = self._fatal_since or time.monotonic()
            elif message["type"] == "heartbeat":
                self._hangs.hear(message)
            elif message["type"] == EVALUATIONS_WANTED:
                self._evaluator.hear(message)
            elif message["type"] == "controller":
                self._controller = message["actor"]
            elif message["type"] == "event":
                self._write_event(message)
            else:
                self._listener(message)

    def _write_event(self, message: dict[str, Any]) -> None:
        """Put an event into the record, if the run is still ours, and pass it on."""
        self._desk.lease.check()
        name = message["event"]
        details = {key: value for key, value in message.items() if key not in ("type", "event")}
        if name in _BEGINNINGS:
            self._training = True
            details |= self._desk.job
        elif name == "checkpoint_saved":
            self._verdicts.checkpoint_saved()
        self._listener({"type": "event", **self._desk.events.write(name, **details)})

    def _say(self, text: str) -> None:
        self._listener({"type": "phase", "text": text})

    def _obey_signals(self) -> None:
        if self._stop.at_once:
            self._say("ending at once; the same command continues from the last checkpoint, if there is one")
            raise KeyboardInterrupt
        if self._stop.asked and not self._stop_told:
            self._stop_told = True
            doing = "saving a checkpoint (again to end at once)" if self._training else "nothing new is to be saved"
            self._say(f"stopping: {doing}")

    def _pause(self) -> bool:
        """Wait a moment between two groups of workers; False where the run is to stop."""
        time.sleep(_POLL_SECONDS)
        self._handle_messages()
        self._obey_signals()
        return not self._stop.asked

    def _avoid_hung_nodes(self) -> None:
        """Leave out the nodes that a rank hung on, if there is room without them."""
        hung = self._hangs.avoided_nodes
        deadline = time.monotonic() + _FREED_SECONDS
        while hung and not self._room.avoid(hung):
            if time.monotonic() > deadline or not self._pause():
                self._say("the node that a rank hung on is used again: there is no room without it")
                return

    @property
    def _run_directory(self) -> StoragePath:
        return storage_path(self._config.storage) / self._config.name

    def _stopped_before_training(self) -> bool:
        """Whether the run is to stop and nothing was learned since its last checkpoint, so that it has ended."""
        if not self._stop.asked or self._training:
            return False
        step = int(RunDirectory(self._run_directory).facts().get(PUBLISHED_STEP, 0))
        self._result = {"step": step, "finished": False}
        return True

    def _gave_up(self) -> bool:
        """Whether the workers were told of an error that ends the run, and Ray Train still has not ended."""
        return self._fatal_since is not None and time.monotonic() - self._fatal_since > _FATAL_GRACE_SECONDS


def _explain(error: Exception) -> str:
    return (
        f"Ray Train could not go on: {error}\n"
        "Checkpoints up to the last saved one are whole; the same command continues from there."
    )
