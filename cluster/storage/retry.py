"""Trying again what a network file system or an object store refuses for a moment, and only that."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

TRANSIENT = frozenset(
    {
        errno.EIO,  # a server or a path to a disk that went away; a broken disk answers so too, and to every try
        errno.EREMOTEIO,  # an object store that does not answer, or answers with 408, 425, 429 or 5xx
        errno.ESTALE,  # an NFS server that was restarted, or a file replaced behind a handle
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ENOTCONN,  # a FUSE mount whose process is being restarted
        errno.ESHUTDOWN,
        errno.EPIPE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOLINK,
        errno.ECOMM,
        errno.ENOBUFS,
    }
)
"""Errors that pass by themselves. Not among them: no space, no quota, read-only, no permission, no such file."""

_OWN_RANDOM = random.Random()  # never the one that a program may have seeded


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How long to wait between tries: doubled each time up to a longest wait, and shortened at random by up to half."""

    tries: int = 10
    """With the waits below 2 minutes in all: an NFS server asks for 90 seconds of grace after a restart."""
    first_seconds: float = 0.5
    """Enough for a dropped connection to be made anew."""
    longest_seconds: float = 30.0
    """Long enough to leave a busy server alone, short enough to notice that it is back."""
    sleep: Callable[[float], object] = time.sleep
    """Waits so many seconds."""
    fraction: Callable[[], float] = _OWN_RANDOM.random
    """Uniform in [0, 1): ranks that failed together must not come back together."""

    def wait_seconds(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        whole = min(self.first_seconds * 2.0 ** (failures - 1), self.longest_seconds)
        return whole * (1.0 - 0.5 * self.fraction())


def retried(
    operation: Callable[[], Value],
    what: str,
    *,
    backoff: Backoff | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> Value:
    """Do something until it succeeds, fails for good, or was tried often enough.

    Args:
        operation: What to do; it must be harmless to do it again from its beginning.
        what: Its name for the log, as in "writing PATH".
        backoff: Tries and waits; the usual ones where None.
        given_up: Whether nobody waits for the outcome any more; then the error of the last try is raised.

    Raises:
        OSError: The error of the last try.
    """
    backoff = backoff or Backoff()
    failures = 0
    while True:
        try:
            return operation()
        except OSError as error:
            failures += 1
            if error.errno not in TRANSIENT or failures >= backoff.tries or given_up():
                raise
            wait_seconds = backoff.wait_seconds(failures)
            logger.warning(
                "%s failed: %s; trying again in %.1f s (try %d of %d)",
                what,
                error.strerror or error,
                wait_seconds,
                failures + 1,
                backoff.tries,
            )
            backoff.sleep(wait_seconds)
