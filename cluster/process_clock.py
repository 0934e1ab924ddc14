"""When a process of this machine started, as Linux tells it: what tells it from a later one of the same number."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def start_ticks(pid: int) -> int | None:
    """Start of a live process in clock ticks since boot (proc(5), field 22); None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def age_seconds() -> float:
    """Seconds since this process started."""
    started = start_ticks(os.getpid())
    assert started is not None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / _TICKS_PER_SECOND
