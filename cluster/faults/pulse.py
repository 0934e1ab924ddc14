"""The pulse of a rank: a thread beside the training that looks where it stands and tells the driver.

It looks from outside, by `sys._current_frames`, so that the step path pays nothing and what hangs need not answer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.attempt import run_attempt
from cluster.checkpoint.writer import CheckpointWriter
from cluster.evaluation.late import rest
from cluster.faults.hang import Heartbeat, beat_seconds
from cluster.faults.stacks import STACKS_SIGNAL
from cluster.process_clock import start_ticks
from cluster.record.wandb_mirror import WandbMirror
from cluster.storage.retry import retried
from cluster.storage.traffic import moved_bytes
from cluster.train_loop import train

logger = logging.getLogger(__name__)

_SAMPLE_SECONDS = 0.2
_STACK_AFTER_SECONDS = 2.0
_MOVED_BYTES = 1 << 20
"""Of files and objects, between two heartbeats, that count as a move: one call may load or save for many minutes."""
_DEEPEST_STACK = 60
_LOOP_FILE = train.__code__.co_filename
_EFFECTS_FILE = run_attempt.__code__.co_filename
_LIMITED_FILE = WandbMirror.close.__code__.co_filename
"""Waits for W&B at the end of an attempt are long, and end by themselves after a minute."""
_RESTING = rest.__code__
"""So are those for evaluations beside the training."""
_BETWEEN_TRIES = retried.__code__
_SETTLING = CheckpointWriter._settle.__code__


class Pulse:
    """Heartbeats of the thread that creates it.

    Args:
        rank: This rank.
        world_size: Number of ranks.
        node: Address of this node.
        node_id: Ray's name of this node.
        step: Gives the step in work; None before the first.
        post: Sends a message to the driver; must not wait.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        node: str,
        node_id: str,
        step: Callable[[], int | None],
        post: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._post = post
        self._clock = clock
        self._thread_id = threading.get_ident()
        self._step = step
        self._position: Any = None
        self._moved_at = clock()
        self._bytes = _moved_bytes()
        self._stacks_fd = os.memfd_create("stacks")  # read by others through /proc; gone with the process
        faulthandler.register(STACKS_SIGNAL, file=self._stacks_fd, all_threads=True)
        self._beat = Heartbeat(
            rank=rank,
            world_size=world_size,
            node=node,
            node_id=node_id,
            pid=os.getpid(),
            started_ticks=start_ticks(os.getpid()) or 0,
            stacks_fd=self._stacks_fd,
            step=None,
            still_seconds=0.0,
            collective=None,
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin to send heartbeats."""
        self._thread.start()

    def close(self) -> None:
        """Send the last heartbeat of an attempt that ended, and no more."""
        self._closed.set()
        self._thread.join()
        self._send(replace(self._beat, ended=True))
        faulthandler.unregister(STACKS_SIGNAL)
        os.close(self._stacks_fd)

    def sample(self) -> None:
        """Look where the thread is."""
        frames = sys._current_frames()
        frame = frames.get(self._thread_id)
        now, step = self._clock(), self._step()
        if frame is None:  # it is about to end
            return
        position, collective, in_step, limited = _describe(frame)
        limited |= _waits_for_tries(frame, frames.values())
        if limited or (step, position) != self._position:
            self._position, self._moved_at = (step, position), now
        self._beat = replace(
            self._beat,
            step=step,
            still_seconds=now - self._moved_at,
            collective=collective,
            step_samples=self._beat.step_samples + in_step,
            busy_samples=self._beat.busy_samples + (in_step and collective is None),
        )

    def beat(self) -> Heartbeat:
        """How the thread stood when it was last looked at."""
        moved, self._bytes = self._bytes, _moved_bytes()
        if self._bytes - moved >= _MOVED_BYTES:
            self._moved_at = self._clock()
            return replace(self._beat, still_seconds=0.0)
        if self._beat.still_seconds < _STACK_AFTER_SECONDS:
            return self._beat
        frame = sys._current_frames().get(self._thread_id)
        return replace(self._beat, stack=stack_lines(frame))

    def _work(self) -> None:
        next_beat = self._clock()
        while not self._closed.wait(_SAMPLE_SECONDS):
            self.sample()
            if self._clock() >= next_beat:
                next_beat = self._clock() + beat_seconds(self._beat.world_size)
                self._send(self.beat())

    def _send(self, beat: Heartbeat) -> None:
        try:
            self._post({"type": "heartbeat", **asdict(beat)})
        except Exception as error:  # noqa: BLE001 - a heartbeat less is no reason to end a training
            logger.debug("a heartbeat could not be sent: %s", error)


def stack_lines(frame: FrameType | None) -> tuple[str, ...]:
    """A stack in words, innermost first: `file:line in function`."""
    lines: list[str] = []
    while frame is not None and len(lines) < _DEEPEST_STACK:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(lines)


def _describe(frame: FrameType) -> tuple[Any, str | None, bool, bool]:
    """Where a thread stands: position, collective, whether in a step's work, whether in a wait that ends by itself.

    What the loop has others do, evaluation, saving and logging, is no work of a step.
    """
    position: list[tuple[int, int]] = []
    innermost = frame.f_code
    collective: str | None = None
    if innermost.co_name == "wait" and f"{os.sep}deepspeed{os.sep}" in innermost.co_filename:
        collective = "wait"  # for one that was begun earlier
    in_step: bool | None = None
    limited = False
    each: FrameType | None = frame
    while each is not None:
        code = each.f_code
        position.append((id(code), each.f_lasti))
        if code.co_filename.endswith("distributed_c10d.py"):
            collective = code.co_name  # the outermost one: the function that was called
        if in_step is None and code.co_filename in (_LOOP_FILE, _EFFECTS_FILE):
            in_step = code.co_filename == _LOOP_FILE
        limited |= code.co_filename == _LIMITED_FILE or code is _RESTING
        each = each.f_back
    return tuple(position), collective, bool(in_step), limited


def _waits_for_tries(frame: FrameType, frames: Collection[FrameType]) -> bool:
    """Whether a thread waits for a checkpoint while the storage is being tried again, which ends by itself.

    A thread between two tries is found in the very function that waits for the next one; one that hangs in a call of
    the storage is not, so that a disk that never answers is told as before.
    """
    if not any(each.f_code is _BETWEEN_TRIES for each in frames):
        return False
    outer: FrameType | None = frame
    while outer is not None and outer.f_code is not _SETTLING:
        outer = outer.f_back
    return outer is not None


def _moved_bytes() -> int:
    """Bytes of files and objects that this process has read and written so far."""
    files = 0
    with contextlib.suppress(OSError, ValueError):
        facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        files = int(facts["rchar"]) + int(facts["wchar"])
    return files + moved_bytes()
