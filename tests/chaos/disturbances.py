"""How each kind of disturbance is done to a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chaos_cluster import Stage
from chaos_injection import GATES, PLACE
from chaos_run import ChaosRun
from faulty_s3 import Fault, set_faults, struck
from processes import start
from scenarios import Disturbance, Kind, Scenario

from cluster.checkpoint import list_checkpoints
from cluster.lease import EXPIRY_SECONDS

_STOP_SECONDS = 120.0
_STOPPED = 130
_STOPS: tuple[Kind, ...] = ("sigterm", "sigint", "stop_job")
"""What lets the run save and end by itself, and waits for that."""
_BUSY = 75
"""EX_TEMPFAIL: another driver has the run."""
_HOUR_SECONDS = 3600.0
_HALF_A_LINE = b'{"kind": "train", "step": 1'
_BALLAST_NAME = "ballast"
_DOWN_SECONDS = 15.0
"""Longer than the library tries, shorter than a save is tried."""


@dataclass
class Play:
    """A scenario while it is played."""

    scenario: Scenario
    stage: Stage
    run: ChaosRun
    disturbance: Disturbance
    """That of the moment."""
    gate: str
    """Where the processes of the moment stand."""

    def choose(self, among: list[int]) -> int:
        """One of several processes: one that stands at the gate, if it is among them."""
        standing = [pid for pid in self.stage.gates.standing(self.gate) if pid in among]
        choice = standing or among
        assert choice, "nobody is there to be disturbed"
        return choice[self.disturbance.pick % len(choice)]

    def node(self) -> subprocess.Popen[bytes]:
        """A node that trains."""
        nodes = [node for node in self.stage.cluster.live if self.stage.cluster.trains(node)]
        assert nodes, "no node trains"
        return nodes[self.disturbance.pick % len(nodes)]

    def hold_later(self, steps: int) -> str:
        """Shut a gate some steps after the moment, so that the training waits for what is being done to it."""
        return self.stage.gates.shut("step", self.stage.gates.step(self.gate) + steps)


def play(scenario: Scenario, stage: Stage, run: ChaosRun) -> None:
    """Disturb a run at each of its moments, and give its command until it is finished."""
    gates = stage.gates
    first = scenario.disturbances[0]
    gate = gates.shut(first.moment, first.from_step)
    run.start()
    for number, disturbance in enumerate(scenario.disturbances):
        here = gate
        what = f"{disturbance.moment}, from step {disturbance.from_step} on"
        run.wait_until(lambda here=here: gates.standing(here), what)  # type: ignore[misc]
        following = scenario.disturbances[number + 1 : number + 2]
        if following and following[0].moment == "load":
            run.wait_until(lambda: _has_checkpoint(run), "a published checkpoint, without which nothing is loaded")
        if following and disturbance.kind not in _STOPS:
            gate = gates.shut(following[0].moment, following[0].from_step)
        if disturbance.delay_ms:
            gates.open(here)
            time.sleep(disturbance.delay_ms / 1000)
        ACTS[disturbance.kind](Play(scenario, stage, run, disturbance, here))
        if following and disturbance.kind in _STOPS:  # at a gate that was shut before, workers would never stop
            gate = gates.shut(following[0].moment, following[0].from_step)
        gates.open(here)
    run.finish()


def _has_checkpoint(run: ChaosRun) -> bool:
    return any(info.manifest is not None for info in list_checkpoints(run.directory))


def _kill_worker(play: Play) -> None:
    os.kill(play.choose(play.stage.cluster.actors("RayTrainWorker")), signal.SIGKILL)


def _kill_driver(play: Play) -> None:
    play.run.kill()


def _kill_actor(name: str) -> Callable[[Play], None]:
    return lambda play: os.kill(play.choose(play.stage.cluster.actors(name)), signal.SIGKILL)


def _lose_node(play: Play) -> None:
    """The machine is gone; another one joins."""
    play.stage.cluster.kill_node(play.node())
    play.stage.cluster.join()


def _kill_raylet(play: Play) -> None:
    """The raylet alone dies; what `ray start` and the workers do of themselves is theirs. The node comes back."""
    play.stage.cluster.kill_raylet(play.node())
    play.stage.cluster.join()


def _lose_cluster(play: Play) -> None:
    """All machines go down, that of the driver too, and come back."""
    play.run.kill()
    play.stage.end()


def _stop(number: int) -> Callable[[Play], None]:
    def stop(play: Play) -> None:
        assert play.run.process is not None
        play.run.process.send_signal(number)
        play.stage.gates.open(play.gate)
        code = play.run.wait(_STOP_SECONDS)
        assert code == _STOPPED, f"the command was stopped and ended with {code}"

    return stop


def _stop_job(play: Play) -> None:
    cluster = play.stage.cluster
    stopping = start(
        "jobs", "stop", play.run.name, "--address", cluster.url, log=play.run.log, environment=cluster.environment
    )
    play.stage.gates.open(play.gate)
    assert stopping.wait(_STOP_SECONDS) == 0, "the job could not be stopped"
    code = play.run.wait(_STOP_SECONDS)
    assert code == _STOPPED, f"the job was stopped and ended with {code}"
    play.run.as_job = False  # the person goes on by hand


def _kill_job_driver(play: Play) -> None:
    """The job's guardian submits it again; the command that follows it stays."""
    os.kill(play.choose(play.stage.cluster.drivers()), signal.SIGKILL)


def _fill_disk(play: Play) -> None:
    """The storage is full for one save; somebody makes room before the next."""
    later = play.hold_later(steps=2)
    ballast = _fill(play)
    play.stage.gates.open(play.gate)
    play.run.wait_until(lambda: b"could not be written" in play.run.log.read_bytes(), "the save that fails")
    ballast.unlink()
    play.stage.gates.open(later)


def _fill_disk_for_long(play: Play) -> None:
    """The storage is full until the command gives up; then somebody makes room."""
    ballast = _fill(play)
    play.stage.gates.open(play.gate)
    code = play.run.wait()
    assert code == 1, f"the storage was full and the command ended with {code}"
    ballast.unlink()


def _fill(play: Play) -> Path:
    """Leave none or up to 1 MiB of the storage's file system free."""
    storage = Path(str(play.run.storage))
    ballast = storage / _BALLAST_NAME
    system = os.statvfs(storage)
    free_bytes = (play.disturbance.pick % 4) << 18
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(system.f_bavail * system.f_frsize - free_bytes, 1))
    return ballast


def _lose_wandb(play: Play) -> None:
    assert play.run.wandb_server is not None
    play.run.wandb_server.close()


def _nothing(play: Play) -> None:
    """What disturbs is there from the start."""


def _end_of_driver(play: Play) -> None:
    """Kill the driver, and wait until all that it started has ended by itself."""
    play.run.kill()
    play.stage.gates.open(play.gate)
    left = play.stage.cluster.wait_for_quiet()
    assert not left, f"the driver is dead, and these go on: {left}"


def _damage(what: Callable[[Path, int], None]) -> Callable[[Play], None]:
    """Kill the driver and then do something to the newest checkpoint."""

    def damage(play: Play) -> None:
        _end_of_driver(play)
        infos = list_checkpoints(play.run.directory)
        assert len(infos) > 1
        what(Path(str(infos[-1].directory)), play.disturbance.pick)

    return damage


def _rank_file(checkpoint: Path, pick: int) -> Path:
    files = sorted(checkpoint.glob("attempt-*/rank-*.safetensors"))
    return files[pick % len(files)]


def _flip(checkpoint: Path, pick: int) -> None:
    path = _rank_file(checkpoint, pick)
    content = bytearray(path.read_bytes())
    content[pick * 97 % len(content)] ^= 1 << pick % 8
    path.write_bytes(content)


def _truncate(checkpoint: Path, pick: int) -> None:
    path = _rank_file(checkpoint, pick)
    os.truncate(path, path.stat().st_size * (pick % 100) // 100)


def _tear_manifest(checkpoint: Path, pick: int) -> None:
    path = checkpoint / "MANIFEST.json"
    os.truncate(path, path.stat().st_size * (pick % 100) // 100)


def _tear(name: str) -> Callable[[Play], None]:
    """Kill the driver; the last line of a log turns out half-written, as a power cut leaves it."""

    def tear(play: Play) -> None:
        _end_of_driver(play)
        with Path(str(play.run.directory), name).open("ab") as file:
            file.write(_HALF_A_LINE)

    return tear


def _second_driver(play: Play) -> None:
    """The same command again while the first works: refused, and nothing else happens."""
    log = play.run.log.with_suffix(".second")
    second = play.run.command(log=log)
    code = second.wait(_STOP_SECONDS)
    assert code == _BUSY, f"the second driver ended with {code}: {log.read_text()}"
    assert "two drivers would spoil each other's record" in log.read_text(), log.read_text()


def _sleeping_driver(play: Play) -> None:
    """The driver stands still for longer than a lease lasts, and a second one of the same machine is refused."""
    assert play.run.process is not None
    play.run.process.send_signal(signal.SIGSTOP)
    until = time.monotonic() + EXPIRY_SECONDS + 2.0
    _second_driver(play)
    time.sleep(max(0.0, until - time.monotonic()))
    play.run.process.send_signal(signal.SIGCONT)


def _displaced_driver(play: Play) -> None:
    """The driver stands still; one of another machine takes the run; the first wakes up and must leave it alone."""
    first, attempt = play.run.process, _attempt(play.run)
    assert first is not None
    first.send_signal(signal.SIGSTOP)
    elsewhere = {"RAY_ADDRESS": "", PLACE: "another machine", GATES: "off"}
    play.run.environment = elsewhere
    play.run.start()
    play.run.wait_until(lambda: _attempt(play.run) > attempt, "the second driver's attempt")
    first.send_signal(signal.SIGCONT)
    play.stage.gates.open(play.gate)
    code = first.wait(_STOP_SECONDS)
    assert code == _BUSY, f"the driver that was displaced ended with {code}"
    assert "was taken over by" in play.run.log.read_text(), "the driver that was displaced does not say so"


def _attempt(run: ChaosRun) -> int:
    return int(json.loads((run.directory / "run.json").read_bytes())["attempt"])


def _turn_clocks(direction: int) -> Callable[[Play], None]:
    return lambda play: play.stage.gates.turn_clocks(direction * _HOUR_SECONDS * (1 + play.disturbance.pick % 9))


def _disturb_store(of: Callable[[int], Fault], lasting_seconds: float | None = None) -> Callable[[Play], None]:
    """Have requests fail that the processes at the moment will make; nothing is killed, and nobody may notice."""

    def disturb(play: Play) -> None:
        fault, url = of(play.disturbance.pick), play.stage.store_url
        before = struck(url)
        set_faults(url, fault)
        play.stage.gates.open(play.gate)
        wanted = before + (fault.times or 1)
        play.run.wait_until(lambda: struck(url) >= wanted, f"the store fails as it was told to: {fault}")
        if lasting_seconds is not None:
            time.sleep(lasting_seconds)
            set_faults(url)

    return disturb


def _s3_errors(pick: int) -> Fault:
    """Half of all requests, until twenty have failed: some more often than the library tries."""
    return Fault(kind="error", times=20, chance=0.5, seed=pick, status=(500, 503)[pick % 2])


def _s3_slow(pick: int) -> Fault:
    """Writing takes seconds each."""
    return Fault(kind="slow", request="^PUT .*/checkpoints/", times=4, seconds=1.0 + pick % 4)


def _s3_lost_answer(pick: int) -> Fault:
    """What was put is there, and nobody is told."""
    return Fault(kind="lost", request=r"^PUT .*MANIFEST\.json", times=1 + pick % 5)


def _s3_down(pick: int) -> Fault:
    """No request is answered, for as long as the disturbance lasts."""
    return Fault(kind="cut")


ACTS: Mapping[Kind, Callable[[Play], None]] = {
    "kill_worker": _kill_worker,
    "kill_driver": _kill_driver,
    "lose_node": _lose_node,
    "kill_raylet": _kill_raylet,
    "lose_cluster": _lose_cluster,
    "kill_controller": _kill_actor("TrainController"),
    "kill_mailbox": _kill_actor("Mailbox"),
    "sigterm": _stop(signal.SIGTERM),
    "sigint": _stop(signal.SIGINT),
    "stop_job": _stop_job,
    "kill_job_driver": _kill_job_driver,
    "fill_disk": _fill_disk,
    "fill_disk_for_long": _fill_disk_for_long,
    "wandb_unreachable": _nothing,
    "wandb_lost": _lose_wandb,
    "delete_checkpoint": _damage(lambda checkpoint, pick: shutil.rmtree(checkpoint)),
    "flip_file": _damage(_flip),
    "truncate_file": _damage(_truncate),
    "remove_file": _damage(lambda checkpoint, pick: _rank_file(checkpoint, pick).unlink()),
    "tear_manifest": _damage(_tear_manifest),
    "tear_metrics": _tear("metrics.jsonl"),
    "tear_events": _tear("events.jsonl"),
    "second_driver": _second_driver,
    "sleeping_driver": _sleeping_driver,
    "displaced_driver": _displaced_driver,
    "clock_forward": _turn_clocks(1),
    "clock_back": _turn_clocks(-1),
    "s3_errors": _disturb_store(_s3_errors),
    "s3_slow": _disturb_store(_s3_slow),
    "s3_down": _disturb_store(_s3_down, lasting_seconds=_DOWN_SECONDS),
    "s3_lost_answer": _disturb_store(_s3_lost_answer),
}
