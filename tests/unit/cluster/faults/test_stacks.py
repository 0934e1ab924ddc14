"""Stacks of real processes, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.faults.hang import Heartbeat
from cluster.faults.stacks import STACKS_SIGNAL, end_process, take_stacks
from cluster.process_clock import start_ticks

_SLEEPER = f"""
import faulthandler, os, time
fd = os.memfd_create("stacks")
faulthandler.register({STACKS_SIGNAL:d}, file=fd, all_threads=True)
def doze():
    print(fd, flush=True)
    time.sleep(600)
doze()
"""
_DEAF = "import time; print(0, flush=True); time.sleep(600)"


@dataclass
class Sleeper:
    """A process that sleeps, and the heartbeat it would have sent."""

    process: subprocess.Popen[bytes]
    beat: Heartbeat

    def stop(self) -> None:
        """Stop it, and see it stand."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def state(self) -> str:
        """Letter of proc(5): S sleeping, T stopped."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def start(code: str) -> Sleeper:
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    descriptor = int(process.stdout.readline())
    beat = Heartbeat(
        rank=3,
        world_size=4,
        node="10.0.0.1",
        node_id="ab",
        pid=process.pid,
        started_ticks=start_ticks(process.pid) or 0,
        stacks_fd=descriptor,
        step=5,
        still_seconds=31.0,
        collective=None,
    )
    return Sleeper(process, beat)


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    made = start(_SLEEPER)
    yield made
    made.process.kill()
    made.process.wait()


def test_stacks_name_the_function_that_a_process_sleeps_in(sleeper: Sleeper) -> None:
    stacks = take_stacks([sleeper.beat])[3]
    assert "in doze" in stacks
    assert f"state of process {sleeper.process.pid}: " in stacks


def test_stacks_hold_only_the_newest_when_they_are_taken_twice(sleeper: Sleeper) -> None:
    take_stacks([sleeper.beat])
    assert take_stacks([sleeper.beat])[3].count("in doze") == 1


def test_stopped_process_gives_its_stacks_and_stays_stopped(sleeper: Sleeper) -> None:
    sleeper.stop()
    stacks = take_stacks([sleeper.beat])[3]
    assert "in doze" in stacks
    assert "stopped" in stacks
    os.waitid(os.P_PID, sleeper.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert sleeper.state() == "T"


def test_process_is_spared_when_it_takes_no_signal_for_its_stacks() -> None:
    deaf = start(_DEAF)
    try:
        assert "takes no signal" in take_stacks([deaf.beat])[3]
        assert deaf.process.poll() is None
    finally:
        deaf.process.kill()
        deaf.process.wait()


def test_process_is_ended_when_it_is_the_one_that_is_meant(sleeper: Sleeper) -> None:
    sleeper.stop()
    assert end_process(sleeper.beat)
    assert sleeper.process.wait(10) == -signal.SIGKILL


def test_process_is_spared_when_it_only_has_the_same_number(sleeper: Sleeper) -> None:
    another = replace(sleeper.beat, started_ticks=sleeper.beat.started_ticks - 1)
    assert not end_process(another)
    assert "it has ended" in take_stacks([another])[3]
    assert sleeper.process.poll() is None


def test_process_is_not_found_when_it_is_gone(sleeper: Sleeper) -> None:
    sleeper.process.kill()
    sleeper.process.wait()
    assert not end_process(sleeper.beat)
    assert start_ticks(sleeper.process.pid) is None
