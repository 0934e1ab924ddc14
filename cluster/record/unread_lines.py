"""What a view of the record has not shown yet, and keeps where the record goes back to a checkpoint under it."""

from __future__ import annotations

import logging
import threading
from typing import Any

from cluster.errors import StorageError
from cluster.record.logs import METRICS_NAME, SAMPLES_NAME, LogTail
from cluster.storage.operations import StoragePath

logger = logging.getLogger(__name__)


class UnreadLines:
    """Lines of metrics.jsonl and samples.jsonl that a mirror has not shown yet; used by two threads."""

    def __init__(self, run_directory: StoragePath) -> None:
        self._directory = run_directory
        self._lock = threading.Lock()
        self.begin_again()

    def begin_again(self) -> None:
        """Give every line of the record as it is by now; what was held is of use only to who has seen the rest."""
        with self._lock:
            self._tails = [LogTail(self._directory / name) for name in (METRICS_NAME, SAMPLES_NAME)]
            self._held: list[dict[str, Any]] | None = None

    def take(self) -> list[dict[str, Any]]:
        """The lines since the last look.

        Raises:
            OSError: The record cannot be read.
            StorageError: It is damaged.
        """
        with self._lock:
            if self._held is None:
                return self._read()
            lines, self._held = self._held, []
            return lines

    def hold(self) -> None:
        """Read what is left now, and nothing ever after: the record is about to change. Raises nothing."""
        with self._lock:
            try:
                self._held = self._read()
            except (OSError, StorageError) as error:
                logger.warning("W&B lacks the last lines of an attempt, which could not be read: %s", error)
                self._held = []

    def _read(self) -> list[dict[str, Any]]:
        return [line for tail in self._tails for line in tail.read()]
