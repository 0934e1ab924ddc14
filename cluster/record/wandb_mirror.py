"""Weights & Biases as a view of the run's record: fed by a thread, never able to stop or slow the training."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.errors import TrackingError
from cluster.record.logs import EVENTS_NAME, read_lines
from cluster.record.unread_lines import UnreadLines
from cluster.record.wandb_place import WandbPlace
from cluster.record.wandb_view import STEP_AXIS, RunView, run_config
from cluster.run_directory import RunDirectory
from cluster.storage.operations import StoragePath

logger = logging.getLogger(__name__)

ATTEMPT_FAILED = "Attempt failed"
RUN_FAILED = "Run failed"
_INIT_SECONDS = 30
_FINISH_SECONDS = 60
_START_AGAIN_SECONDS = (1, 30, 300)
"""Waits before W&B is started again after its death; after the last one it is left alone."""
_DATA_VARIABLE = "WANDB_DATA_DIR"
_STAGED_IN: set[str] = set()
"""What mirrors of this process have set it to."""

Mode = Literal["online", "offline", "disabled"]
Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """How a run appears in W&B. The id is the run's for ever, so that all attempts are one curve."""

    mode: Mode
    project: str
    run_id: str
    name: str
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    server: str | None = None
    """Address of the W&B server; None for W&B's own choice."""
    api_key: str | None = field(default=None, repr=False)
    """Given to W&B in memory and written nowhere; None where each node has its own."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run or an attempt ends, as an alert."""

    title: str
    text: str


def check_reachable(base_url: str, timeout_seconds: float = 10.0) -> None:
    """Prove that the server answers, before anything is started.

    Raises:
        TrackingError: It does not.
    """
    try:
        urllib.request.urlopen(base_url, timeout=timeout_seconds).close()
    except urllib.error.HTTPError:
        return  # any answer is an answer
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"wandb.mode is online, and {base_url} cannot be reached: {error}. Mend the connection, or set "
            "wandb.mode=offline: the run's directory then holds files that `wandb sync` uploads later."
        ) from error


class WandbMirror:
    """Follows the files of a run's record in a thread and shows them in W&B.

    Offline, every start first logs the whole record again, so that the newest offline directory is complete by itself;
    online, it logs what the server lacks. A W&B process that dies is started again in the same way.

    A process has one W&B: the mirror of an attempt after a rollback begins when the one before has ended, while both
    attempts go their way. Nothing is lost for that and nothing grows in memory, since the record is in files.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        run_directory: StoragePath,
        *,
        attempt: int | None,
        before: WandbMirror | None = None,
    ) -> None:
        """Begin to follow.

        Args:
            settings: How the run appears.
            run_directory: Its run.json, metrics.jsonl, samples.jsonl and events.jsonl are shown.
            attempt: The attempt whose mishaps raise alerts; None for none.
            before: The mirror that was left in this process; None for none.
        """
        self._settings = settings
        self._directory = run_directory
        self._place: WandbPlace | None = None
        self._attempt = attempt
        self._before = before
        self._unread = UnreadLines(run_directory)
        self._status: Status = "failed"
        self._failure: Failure | None = None
        self._alerted: set[str] = set()
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if settings.mode != "disabled":
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Say that the record has new lines; returns at once."""
        self._news.set()

    def close(self, status: Status, failure: Failure | None = None, timeout_seconds: float = 60.0) -> None:
        """Show the rest of the record and finish the W&B run, for as long as the time allows.

        Args:
            status: How it ended; `failed` marks the W&B run as failed.
            failure: Raises an alert.
            timeout_seconds: Longest wait.
        """
        if self._thread is None:
            return
        self._status, self._failure = status, failure
        self._closing.set()
        self._news.set()
        before = self._before
        if before is not None:
            before.wait(timeout_seconds)
        if not self.wait(timeout_seconds):
            logger.warning(
                "W&B did not finish within %.0f s; its files are in %s",
                timeout_seconds,
                self._directory if self._place is None else self._place.directory,
            )

    def leave(self, status: Status, failure: Failure | None = None) -> None:
        """Let the mirror finish by itself, and return at once: the next attempt of this process takes over the record.

        What was not shown yet is read now, before the record goes back to a checkpoint.

        Args:
            status: How the attempt ended.
            failure: Raises an alert.
        """
        if self._thread is None:
            return
        self._unread.hold()
        self._status, self._failure = status, failure
        self._closing.set()
        self._news.set()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the mirror has ended, which it does once it was closed or left; whether it has."""
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        if self._before is not None:
            if not self._before.wait(_FINISH_SECONDS):
                logger.warning("W&B has not finished the attempt before; this one is shown there once it has")
                self._before.wait()
            self._before = None
        self._follow_through_deaths()
        if self._place is not None:
            self._place.keep()

    def _follow_through_deaths(self) -> None:
        for wait_seconds in (*_START_AGAIN_SECONDS, None):
            try:
                self._follow()
                return
            except Exception as error:  # tracking must never stop a training: the record has every line
                if wait_seconds is None:
                    logger.exception("W&B tracking ended; metrics.jsonl goes on and is the record")
                    return
                logger.warning("W&B failed (%s: %s); it is started again", type(error).__name__, error)
                self._unread.begin_again()
            finally:
                _end_process()
            self._closing.wait(wait_seconds)

    def _follow(self) -> None:
        """Show the record from its beginning until the mirror is closed."""
        facts = RunDirectory(self._directory).facts()
        run = self._start(run_config(facts))

        def alert(title: str, text: str) -> None:
            if title not in self._alerted:
                run.alert(title=title, text=f"run {self._settings.name}: {text}", level="ERROR")
                self._alerted.add(title)

        view = RunView(
            run,
            several_datasets=len(facts.get("datasets", [])) > 1,
            server=_newest_line(run) if self._settings.mode == "online" else (0, 0),
            attempt=self._attempt,
            alert=alert,
        )
        view.show_events(read_lines(self._directory / EVENTS_NAME))
        closing = False
        while not closing:
            self._news.clear()  # before the question: a wish to close that comes between the two wakes us again
            closing = self._closing.is_set()  # asked before the last look, so that no line is missed
            view.take(self._unread.take())
            if not closing:
                self._news.wait()
        view.show_events(read_lines(self._directory / EVENTS_NAME))
        view.end(self._status)
        if self._failure is not None:
            alert(self._failure.title, self._failure.text)
        run.finish(exit_code=1 if self._status == "failed" else 0)

    def _start(self, config: dict[str, Any]) -> Any:
        self._place = self._place or WandbPlace(self._directory)
        self._place.make()
        directory = self._place.directory
        _stage_in(directory / ".data")
        import wandb

        settings = self._settings
        given = {"api_key": settings.api_key, "base_url": settings.server}
        arguments: dict[str, Any] = {
            "project": settings.project,
            "entity": settings.entity,
            "group": settings.group,
            "job_type": settings.job_type,
            "tags": settings.tags,
            "notes": settings.notes,
            "name": settings.name,
            "id": settings.run_id,
            "resume": "allow",
            "dir": str(self._place.parent),
            "settings": wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_INIT_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                x_transaction_log_flush_interval=1,
                **{key: value for key, value in given.items() if value is not None},
            ),
        }
        try:
            run = wandb.init(mode=settings.mode, **arguments)
        except wandb.errors.Error as error:
            if settings.mode == "offline":
                raise
            logger.warning("W&B cannot be reached (%s): this attempt is tracked offline in %s", error, directory)
            run = wandb.init(mode="offline", **arguments)
        run.config.update(config, allow_val_change=True)  # a resumed run would keep its old values
        run.define_metric(STEP_AXIS)
        run.define_metric("*", step_metric=STEP_AXIS)
        return run


def announce_failure(
    settings: TrackingSettings, run_directory: StoragePath, text: str, timeout_seconds: float = 90.0
) -> None:
    """Show in W&B that a run failed for good, where no worker is left to do so.

    A process of its own replays the record, raises the alert, marks the W&B run as failed and ends: whatever W&B does,
    the caller goes on after `timeout_seconds` at the latest.

    Args:
        settings: How the run appears.
        run_directory: The run.
        text: Why it failed.
        timeout_seconds: Longest wait.
    """
    if settings.mode == "disabled":
        return
    process = multiprocessing.get_context("spawn").Process(
        target=_announce, args=(settings, run_directory, text, timeout_seconds), name="wandb-announcement", daemon=True
    )
    try:
        process.start()
    except OSError as error:
        logger.warning("the failure could not be shown in W&B: %s", error)
        return
    process.join(timeout_seconds)
    if process.is_alive():
        process.kill()
        process.join()
        logger.warning("the failure could not be shown in W&B within %.0f s", timeout_seconds)


def _announce(settings: TrackingSettings, run_directory: StoragePath, text: str, timeout_seconds: float) -> None:
    mirror = WandbMirror(settings, run_directory, attempt=None)
    mirror.close("failed", Failure(title=RUN_FAILED, text=text), timeout_seconds)


def _stage_in(directory: Path) -> None:
    """Have tables staged for upload beside the offline files that name them, not in some node's home.

    A directory that the user chose stays; one of an earlier mirror of this process goes with that mirror's files.
    """
    if os.environ.get(_DATA_VARIABLE) in (None, *_STAGED_IN):
        os.environ[_DATA_VARIABLE] = str(directory)
        _STAGED_IN.add(str(directory))


def _newest_line(run: Any) -> tuple[int, int]:
    """(attempt, step) of the last line that the server took."""
    return int(run.summary.get("attempt", 0)), int(run.summary.get(STEP_AXIS, 0))


def _end_process() -> None:
    """End W&B's process, where it lives: the next start needs a new one, and at exit W&B would wait for it."""
    with contextlib.suppress(Exception):  # of a dead process it says once more that it died
        import wandb

        wandb.teardown()
