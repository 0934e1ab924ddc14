"""Real Ray clusters of several nodes on this machine, each node with ports and directories of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import descendants, training_workers

START_SECONDS = 300
_HIDE_INSTALLATION = """import sys
sys.path[:] = [path for path in sys.path if path != {root!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(getattr(finder, "__module__", ""))]
"""


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment without what the person running the tests has set for Ray and W&B."""
    outside = ("RAY_", "WANDB_", "CUDA_")
    return {key: value for key, value in os.environ.items() if not key.startswith(outside)} | extra


@dataclass
class Cluster:
    """A head and its nodes."""

    directory: Path
    """Temporary, with a short path: Ray puts sockets below it."""
    token: str | None = None
    """With a token every process must know it; without one authentication is off."""
    head_cpus: int = 2
    startup_code: str = ""
    """What every Python process of its nodes runs first."""
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Address of the Jobs API."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every process that talks to the cluster."""
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        auth = (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
            if self.token is not None
            else {"RAY_AUTH_MODE": "disabled"}
        )
        return clean_environment(
            {
                "HOME": str(home),
                "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),  # `python` is ours
                "PYTHONPATH": str(self._hide_installation()),
                "RAY_USAGE_STATS_ENABLED": "0",
                **auth,
            }
        )

    @property
    def driver_environment(self) -> dict[str, str]:
        """Environment of a command here that trains on the cluster with the Longhaul that is installed here."""
        return {**self.environment, "RAY_ADDRESS": f"127.0.0.1:{self.port}", "PYTHONPATH": ""}

    def _hide_installation(self) -> Path:
        """A directory that takes Longhaul's own installation out of every Python of the cluster."""
        site = self.directory / "site"
        site.mkdir(exist_ok=True)
        hide = _HIDE_INSTALLATION.format(root=str(Path(__file__).parents[2]))
        (site / "sitecustomize.py").write_text(hide + self.startup_code)
        return site

    def start(self) -> Cluster:
        """Start the head and wait until its Jobs API answers."""
        self._start_node(
            "--head",
            f"--port={self.port}",
            f"--dashboard-port={self.dashboard_port}",
            "--dashboard-host=127.0.0.1",
            f"--num-cpus={self.head_cpus}",
            f"--ray-client-server-port={free_port()}",
            f"--temp-dir={self.directory / 'h'}",
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._takes_jobs():
            if self.nodes[0].poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.directory / "node-0.log").read_text())
            time.sleep(0.1)
        return self

    def add_node(self, *, cpus: int, address: str = "127.0.0.1") -> subprocess.Popen[bytes]:
        """Start a node that joins the head, with a temporary directory of its own."""
        return self._start_node(
            f"--address=127.0.0.1:{self.port}",
            f"--num-cpus={cpus}",
            f"--node-ip-address={address}",
            f"--temp-dir={self.directory / f'n{len(self.nodes)}'}",
        )

    def wait_for_nodes(self) -> None:
        """Wait until every node that was started has joined."""
        deadline = time.monotonic() + START_SECONDS
        while len(self._live_nodes()) < len(self.nodes):
            if time.monotonic() > deadline:
                raise AssertionError("the nodes did not join")
            time.sleep(0.2)

    def trains(self, node: subprocess.Popen[bytes]) -> bool:
        """Whether a training worker runs on a node."""
        return bool(training_workers(node.pid))

    def kill_node(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL a node's raylet and all that runs on the node, as when the machine is lost."""
        for process in [*descendants(node.pid), node.pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()

    def drain(self, address: str, *, deadline_seconds: int) -> None:
        """Announce, as a platform does, that a node is taken back."""
        (node,) = (node for node in self._live_nodes() if node["ip"] == address)
        ray = Path(sys.executable).with_name("ray")
        subprocess.run(
            [
                *(str(ray), "drain-node", f"--address=127.0.0.1:{self.port}"),
                f"--node-id={node['raylet']['nodeId']}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION",
                "--reason-message=spot",
                f"--deadline-remaining-seconds={deadline_seconds}",
            ],
            check=True,
            env=self.environment,
            capture_output=True,
        )

    def stop(self) -> None:
        """End every process of the cluster, and remove its directory."""
        for node in reversed(self.nodes):
            if node.poll() is None:
                self.kill_node(node)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start_node(self, *arguments: str) -> subprocess.Popen[bytes]:
        ray, agent = Path(sys.executable).with_name("ray"), free_port()
        log = (self.directory / f"node-{len(self.nodes)}.log").open("wb")
        node = subprocess.Popen(
            # The agent is what takes jobs: on one port for all clusters of a machine, unless told otherwise.
            [
                str(ray),
                "start",
                "--block",
                "--disable-usage-stats",
                f"--dashboard-agent-listen-port={agent}",
                *arguments,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            start_new_session=True,
        )
        self.nodes.append(node)
        return node

    def _takes_jobs(self) -> bool:
        """Whether a job that does nothing is taken: the dashboard answers some time before."""
        try:
            return bool(self._request("/api/jobs/", b'{"entrypoint": "true"}'))
        except (urllib.error.URLError, OSError):
            return False

    def _live_nodes(self) -> list[Any]:
        summary = json.loads(self._request("/nodes?view=summary"))["data"]["summary"]
        return [node for node in summary if node["raylet"].get("state") == "ALIVE"]

    def _request(self, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        if self.token is not None:
            request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=5) as answer:
            content: bytes = answer.read()
        return content


def new_cluster(*, token: str | None = None, head_cpus: int = 2, startup_code: str = "") -> Cluster:
    """A cluster that is not started yet."""
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    return Cluster(directory, token=token, head_cpus=head_cpus, startup_code=startup_code)


@contextmanager
def running_cluster(*, token: str | None = None, head_cpus: int = 2, startup_code: str = "") -> Iterator[Cluster]:
    """A cluster whose head takes jobs; every process of it is ended afterwards."""
    cluster = new_cluster(token=token, head_cpus=head_cpus, startup_code=startup_code)
    try:
        yield cluster.start()
    finally:
        cluster.stop()
