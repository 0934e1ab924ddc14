"""The way between workers and driver while Ray runs both: a small actor that nobody waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.evaluation.beside import Outcome
from cluster.faults.rules import Sentence

if TYPE_CHECKING:  # the actor needs no torch
    from cluster.train_loop import Regroup

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the driver wants of the workers."""

    stop: bool = False
    """To save and end, because the run is to stop."""
    regroup: Regroup = "no"
    """To save and end, because other workers are to take over."""
    evaluations: tuple[Outcome, ...] = ()
    """What has come of evaluations beside the training and is to be recorded."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """All that the driver says, again with each exchange."""

    wishes: Wishes = field(default_factory=Wishes)
    verdicts: Mapping[str, Sentence] = field(default_factory=dict)
    """What follows each failure of the workers, by its number."""
    wandb_key: str | None = field(default=None, repr=False)


class Mailbox:
    """Keeps messages for the driver until it fetches them, and for the workers what the driver wants."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._orders = Orders()
        self._asked: set[str] = set()

    def wandb_key(self) -> str | None:
        """The W&B API key."""
        return self._orders.wandb_key

    def post(self, message: dict[str, Any]) -> None:
        """Add a message."""
        self._messages.append(message)

    def exchange(self, orders: Orders) -> list[dict[str, Any]]:
        """Take all messages, oldest first, and say again what the driver wants, in case this actor was restarted.

        The W&B key is kept in memory here alone: Ray shows and stores what jobs, trainers and new actors are told.
        """
        self._orders = orders
        messages, self._messages = self._messages, []
        return messages

    def verdict(self, report: dict[str, Any]) -> Sentence | None:
        """What follows a failure of the workers; None until the driver has decided.

        Args:
            report: The failure, with its number; asked again and again, so that a restart of this actor loses nothing.
        """
        number = report["number"]
        if number not in self._orders.verdicts and number not in self._asked:
            self._asked.add(number)
            self._messages.append(report)
        return self._orders.verdicts.get(number)

    def wishes(self) -> Wishes:
        """What the driver wants of the workers."""
        return self._orders.wishes


def start_mailbox() -> Any:
    """Start the actor on the driver's node, with which it lives and dies; it takes no CPU of the run's.

    Should its process die alone, Ray starts it again; messages that it held are lost, the record is not.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Mailbox).options(**options).remote()


class MailboxLink:
    """A worker's end of the mailbox: posting returns at once, and the driver's wishes are looked up by a thread."""

    def __init__(self, mailbox: Any, *, watch_wishes: bool) -> None:
        self._mailbox = mailbox
        self._wishes = Wishes()
        self._closed = threading.Event()
        if watch_wishes:
            threading.Thread(target=self._watch, name="wishes", daemon=True).start()

    def post(self, message: dict[str, Any]) -> None:
        """Send a message; never waits."""
        self._mailbox.post.remote(message)

    def post_and_wait(self, message: dict[str, Any]) -> None:
        """Send a message that must arrive before this process ends."""
        ray.get(self._mailbox.post.remote(message))

    def stop_requested(self) -> bool:
        """Whether the driver wants the run to save and end."""
        return self._wishes.stop

    def regroup_requested(self) -> Regroup:
        """Whether the driver wants this rank to end for other workers to take over, and how long that can wait."""
        return self._wishes.regroup

    def evaluations(self) -> tuple[Outcome, ...]:
        """What has come of evaluations beside the training, until it is no longer waited for."""
        return self._wishes.evaluations

    def close(self) -> None:
        """End the watching thread, once every message sent so far has arrived."""
        self._closed.set()
        ray.get(self._mailbox.wishes.remote())  # an actor takes one caller's calls in order

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            self._wishes = ray.get(self._mailbox.wishes.remote())


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
