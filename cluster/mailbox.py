"""The way between workers and driver while Ray runs both: a small actor that nobody waits for."""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_POLL_SECONDS = 0.5


class Mailbox:
    """Keeps messages for the driver until it fetches them, and for the workers the wish to stop and the W&B key."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._stop = False
        self._wandb_key: str | None = None
        self._failures = 0

    def wandb_key(self) -> str | None:
        """The W&B API key."""
        return self._wandb_key

    def post(self, message: dict[str, Any]) -> None:
        """Add a message."""
        self._messages.append(message)
        if message.get("event") == "checkpoint_saved":
            self._failures = 0

    def exchange(self, stop: bool, wandb_key: str | None) -> list[dict[str, Any]]:
        """Take all messages, oldest first, and say again what the driver wants, in case this actor was restarted.

        The W&B key is kept in memory here alone: Ray shows and stores what jobs, trainers and new actors are told.
        """
        self._stop, self._wandb_key = stop, wandb_key
        messages, self._messages = self._messages, []
        return messages

    def may_retry(self, max_failures: int) -> bool:
        """Count a failure; whether the run may go on after it, a checkpoint since the last ones making up for them."""
        self._failures += 1
        return max_failures < 0 or self._failures <= max_failures

    def stop_requested(self) -> bool:
        """Whether the driver asked for that."""
        return self._stop


def start_mailbox() -> Any:
    """Start the actor on the driver's node, with which it lives and dies; it takes no CPU of the run's.

    Should its process die alone, Ray starts it again; messages that it held are lost, the record is not.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Mailbox).options(**options).remote()


class MailboxLink:
    """A worker's end of the mailbox: posting returns at once, and the wish to stop is looked up by a thread."""

    def __init__(self, mailbox: Any, *, watch_stop: bool) -> None:
        self._mailbox = mailbox
        self._stop = threading.Event()
        self._closed = threading.Event()
        if watch_stop:
            threading.Thread(target=self._watch, name="stop-watch", daemon=True).start()

    def post(self, message: dict[str, Any]) -> None:
        """Send a message; never waits."""
        self._mailbox.post.remote(message)

    def post_and_wait(self, message: dict[str, Any]) -> None:
        """Send a message that must arrive before this process ends."""
        ray.get(self._mailbox.post.remote(message))

    def stop_requested(self) -> bool:
        """Whether the driver wants the run to save and end."""
        return self._stop.is_set()

    def close(self) -> None:
        """End the watching thread, once every message sent so far has arrived."""
        self._closed.set()
        ray.get(self._mailbox.stop_requested.remote())  # an actor takes one caller's calls in order

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            if ray.get(self._mailbox.stop_requested.remote()):
                self._stop.set()
                return


class MailboxLogHandler(logging.Handler):
    """Sends a worker's log records to the driver."""

    def __init__(self, link: MailboxLink, rank: int) -> None:
        super().__init__(level=logging.INFO if rank == 0 else logging.WARNING)
        self._link = link
        self._rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        self._link.post(
            {
                "type": "log",
                "level": record.levelno,
                "logger": record.name,
                "rank": self._rank,
                "text": self.format(record),
            }
        )
