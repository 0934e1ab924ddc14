"""What is done to worker processes from beside them, on their node: stacks taken, and the process ended.

Stacks are written by Python's faulthandler at a signal: it needs neither the interpreter's lock nor a thread that
answers, so it works in a process that hangs in C. A stopped process is woken for it and stopped again.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.faults.hang import Heartbeat
from cluster.process_clock import start_ticks

STACKS_SIGNAL = signal.SIGUSR2
_WRITE_SECONDS = 5.0
_POLL_SECONDS = 0.05


def take_stacks(processes: Sequence[Heartbeat]) -> dict[int, str]:
    """Have processes of this node write the stacks of all their threads.

    Returns:
        By rank, the stacks, or why there are none.
    """
    asked = [_Request(beat) for beat in processes]
    deadline = time.monotonic() + _WRITE_SECONDS
    writing = asked
    while (writing := [request for request in writing if not request.settled()]) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return {request.beat.rank: request.finish() for request in asked}


def end_process(beat: Heartbeat) -> bool:
    """SIGKILL a process of this node, if it is still the one that sent the heartbeat; whether it was."""
    if not _is_alive(beat):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(beat.pid, signal.SIGKILL)
    return True


def _is_alive(beat: Heartbeat) -> bool:
    return start_ticks(beat.pid) == beat.started_ticks


class _Request:
    """One process that was asked for its stacks."""

    def __init__(self, beat: Heartbeat) -> None:
        self.beat = beat
        self._written = Path(f"/proc/{beat.pid}/fd/{beat.stacks_fd}")
        self._before = 0
        self._content = b""
        self._stopped = False
        self._state = ""
        self._problem = self._ask()

    def settled(self) -> bool:
        """Whether there is nothing to wait for; to be asked again and again."""
        if self._problem is not None:
            return True
        known, self._content = self._content, self._read()
        return bool(known) and known == self._content

    def finish(self) -> str:
        """The stacks, or why there are none."""
        if self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.beat.pid, signal.SIGSTOP)
        problem = self._problem or ("" if self._content else f"it wrote no stacks within {_WRITE_SECONDS:g} s")
        return f"state of process {self.beat.pid}: {self._state}\n{problem or self._content.decode(errors='replace')}"

    def _ask(self) -> str | None:
        """Send the signal; says what is in the way."""
        if not _is_alive(self.beat):
            self._state = "gone"
            return "it has ended"
        facts = _status(self.beat.pid)
        self._state = facts.get("State", "unknown")
        if not int(facts.get("SigCgt", "0"), 16) >> (STACKS_SIGNAL - 1) & 1:  # it would die of the signal
            return "it takes no signal for its stacks any more"
        try:
            self._before = len(self._written.read_bytes())
            os.kill(self.beat.pid, STACKS_SIGNAL)
            if self._state.startswith("T"):
                os.kill(self.beat.pid, signal.SIGCONT)
                self._stopped = True
        except OSError as error:
            return f"its stacks cannot be had: {error}"
        return None

    def _read(self) -> bytes:
        try:
            return self._written.read_bytes()[self._before :]
        except OSError:  # it ended in the meantime
            return self._content


def _status(pid: int) -> dict[str, str]:
    """Lines of proc(5)'s status: state and signals."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return dict(re.findall(r"^(\w+):\s*(.*)$", text, flags=re.MULTILINE))
