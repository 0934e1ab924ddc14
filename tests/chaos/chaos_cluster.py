"""The cluster that runs are disturbed on: a head that trains nothing and two nodes, mended after each scenario."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from chaos_injection import DIRECTORY
from clusters import Cluster, free_port
from faulty_s3 import ENVIRONMENT
from gates import Gates
from processes import actors, descendants

INJECTION = Path(__file__).with_name("injection")
_LOAD_INJECTION = f"import sys\nsys.path.append({str(INJECTION)!r})\nimport chaos_injection\n"
_TRAINING_NODES = 2
_STARTS = 3
_MEND_SECONDS = 300.0
_QUIET_SECONDS = 60.0
_OF_RAY_ITSELF = (
    b"gcs_server",
    b"raylet",
    b"/ray\0start",
    b"ray/dashboard/",
    b"ray.dashboard.",
    b"autoscaler/_private/monitor.py",
    b"ray::DashboardAgent",
    b"ray::RuntimeEnvAgent",
    b"ray::PlacementGroupCleaner",  # Ray Train's; beside another cluster on the machine it finds neither, and stays
    b"_private/log_monitor.py",
    b"_private/runtime_env/agent",
    b"ray-dashboard",
    b"ray::IDLE",
    b"default_worker.py",
    b"ray.util.client.server",
    b"setup_worker.py",
)
"""Command lines of processes that belong to a cluster, and not to a run on it."""


@dataclass
class ChaosCluster(Cluster):
    """A cluster whose processes stand at gates and have clocks that can be turned."""

    chaos_directory: Path = field(kw_only=True)
    store_url: str = field(kw_only=True)
    """Where its processes look for an object store."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every process of the cluster and of the commands."""
        store = {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.store_url}
        return {**super().environment, **store, DIRECTORY: str(self.chaos_directory)}

    def _hide_installation(self) -> Path:
        """Nothing is hidden; written once, since a process that starts while it is rewritten would find half of it."""
        site = self.directory / "site"
        if not site.exists():
            site.mkdir()
            (site / "sitecustomize.py").write_text(self.startup_code)
        return site

    @property
    def live(self) -> list[subprocess.Popen[bytes]]:
        """The nodes that are there, besides the head."""
        return [node for node in self.nodes[1:] if node.poll() is None]

    def actors(self, name: str) -> list[int]:
        """Process ids of the actors of a class, on all nodes."""
        return sorted(pid for node in self.nodes if node.poll() is None for pid in actors(node.pid, name))

    def drivers(self) -> list[int]:
        """Process ids of the drivers of jobs."""
        return [pid for pid in descendants(self.nodes[0].pid) if b"-m\0launcher\0" in _read(pid, "cmdline")]

    def kill_raylet(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL a node's raylet alone: what ran under it has to notice."""
        for pid in descendants(node.pid):
            if _read(pid, "cmdline").split(b"\0")[0].endswith(b"/raylet"):
                os.kill(pid, signal.SIGKILL)

    def mend(self) -> None:
        """Bring the nodes back to two, and wait until the head sees just those.

        One after another: on a busy machine the processes of nodes that start together give each other up.
        """
        for node in self.live[_TRAINING_NODES:]:
            self.kill_node(node)
        deadline = time.monotonic() + _MEND_SECONDS
        while (seen := self._joined()) != (there := self._addresses()) or len(there) < _TRAINING_NODES:
            if seen >= there and len(there) < _TRAINING_NODES:
                self.join()
            if time.monotonic() > deadline:
                raise AssertionError(f"the head sees nodes at {seen}, and there are those at {there}")
            time.sleep(0.2)

    def join(self) -> None:
        """Start a node with room for one worker, at an address of its own."""
        self.add_node(cpus=1, address=_address(len(self.nodes)))

    def _joined(self) -> set[str]:
        return {node.get("ip", "") for node in self._live_nodes() if not node["raylet"].get("isHeadNode")}

    def _addresses(self) -> set[str]:
        return {_address(index) for index, node in enumerate(self.nodes) if index and node.poll() is None}

    def run_processes(self) -> dict[int, str]:
        """Processes of runs, wherever they are: those of the cluster or its environment that are not Ray's own."""
        found = {}
        marks = (os.fsencode(self.directory) + b"/", os.fsencode(self.chaos_directory))
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            command = _read(pid, "cmdline")
            if not command or any(word in command for word in _OF_RAY_ITSELF) or _tracks_dashboard(pid, command):
                continue
            traces = [_read(pid, "environ"), *(_link(pid, name) for name in ("cwd", "fd/1", "fd/2"))]
            if any(mark in trace for mark in marks for trace in traces):
                found[pid] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def wait_for_quiet(self) -> dict[int, str]:
        """Wait until no process of a run is left; returns those that are."""
        deadline = time.monotonic() + _QUIET_SECONDS
        while (left := self.run_processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


@dataclass
class Stage:
    """What scenarios share: the gates, and a cluster for as long as no scenario ends it."""

    gates: Gates
    store_port: int = field(default_factory=free_port)
    _cluster: ChaosCluster | None = None

    @property
    def store_url(self) -> str:
        """Where an object store listens, once a scenario wants one."""
        return f"http://127.0.0.1:{self.store_port}"

    @property
    def cluster(self) -> ChaosCluster:
        """The cluster, started where there is none."""
        if self._cluster is not None and self._cluster.nodes[0].poll() is not None:
            self.end()
        tries = _STARTS
        while self._cluster is None:
            directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
            self._cluster = ChaosCluster(
                directory,
                head_cpus=0,
                startup_code=_LOAD_INJECTION,
                chaos_directory=self.gates.directory,
                store_url=self.store_url,
            )
            try:
                self._cluster.start()
                self._cluster.mend()
            except AssertionError:  # on a busy machine Ray's own processes give each other up
                tries -= 1
                self.end()
                if not tries:
                    raise
        return self._cluster

    def end(self) -> None:
        """End every process of the cluster."""
        if self._cluster is not None:
            self._cluster.stop()
            self._cluster = None


def _address(index: int) -> str:
    """Where a node listens; the head is the node of index 0, at the machine's own address."""
    return f"127.0.0.{1 + index}"


def _tracks_dashboard(pid: int, command: bytes) -> bool:
    """Whether it is the tracker of resources that Python starts for the dashboard."""
    parent = _read(pid, "stat").rpartition(b")")[2].split()[1:2]
    return b"multiprocessing.resource_tracker" in command and b"ray/dashboard/" in _read(int(*parent), "cmdline")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _link(pid: int, name: str) -> bytes:
    try:
        return os.fsencode(os.readlink(f"/proc/{pid}/{name}"))
    except OSError:
        return b""
