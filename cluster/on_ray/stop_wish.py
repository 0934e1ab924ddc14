"""The wish to stop a command, told by signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SAME_WISH_SECONDS = 1.0


class StopWish:
    """The first SIGINT or SIGTERM asks to save and stop; another one, a second later or more, to end at once.

    Some senders signal a process and then its group: their two signals mean one wish.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self.at_once = False
        """Whether the command is to end without saving."""

    @property
    def asked(self) -> bool:
        """Whether the run is to save and stop."""
        return self._since is not None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear signals within the block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: Any) -> None:
        if self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since > _SAME_WISH_SECONDS:
            self.at_once = True
