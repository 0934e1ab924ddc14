"""Jobs on a real cluster with a Jobs API: submitted, followed, killed, stopped, refused."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from clusters import Cluster, new_cluster, running_cluster
from processes import finish, kill, start, wait_until
from runs import assert_wandb_complete, event_rows, events_of, logged_steps, pretrain, record_of, settings
from typer.testing import CliRunner

from cluster.errors import JobError
from cluster.jobs.api import Jobs
from cluster.lease import hold
from data_pipeline.dataset import Dataset
from launcher.cli import app

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
SECRET = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "a-token-of-the-cluster-that-nobody-else-knows-0123456789"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without authentication."""
    with running_cluster() as made:
        yield made


@pytest.fixture
def jobs(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Its jobs, from this process."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.url)
    return Jobs(cluster.url)


def submit(cluster: Cluster, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    return start("submit", *arguments, "--address", cluster.url, log=log, environment=cluster.environment)


def drivers(name: str) -> list[int]:
    """Process ids of drivers that work for a job whose run is called so."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes()
        except OSError:
            continue
        if words[1:4] == [b"-m", b"launcher", b"pretrain"] and f"longhaul-{name}-".encode() in variables:
            found.append(int(entry.name))
    return found


def literal_submission(cluster: Cluster, working_directory: Path, storage: Path, dataset: Path) -> None:
    """`ray job submit` as the README has it; no process of the cluster can import what is installed here."""
    for name in ("launcher", "cluster", "data_pipeline", "llm"):
        shutil.copytree(ROOT / name, working_directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", cluster.url]
    command += ["--working-dir", ".", "--", "python", "-m", "launcher", *pretrain(storage, dataset)]
    done = subprocess.run(
        command, cwd=working_directory, env=cluster.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "step 100: finished" in done.stdout


@pytest.mark.slow
def test_literal_ray_job_submit_trains_and_tracks_all(
    cluster: Cluster, jobs: Jobs, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    literal_submission(cluster, tmp_path / "code", tmp_path, dataset)
    assert record_of(tmp_path) == record_of(undisturbed)
    assert_wandb_complete(tmp_path)
    (known,) = [job for job in jobs.all() if job.directory == str(tmp_path / "smoke")]  # its guardian told
    assert (known.id, known.run) == (event_rows(tmp_path)[0]["job"], "smoke")
    assert known.id.startswith("raysubmit_")


@pytest.mark.slow
def test_ray_job_submit_and_submit_train_when_the_cluster_asks_for_a_token(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    with running_cluster(token=TOKEN) as cluster:
        literal_submission(cluster, tmp_path / "code", tmp_path / "literal", dataset)
        log = tmp_path / "log"
        assert finish(submit(cluster, "pretrain", *settings(tmp_path / "ours", dataset), log=log), log) == 0
        refused = replace(cluster, token="another-token-that-is-not-the-cluster's-0123456789")
        assert submit(refused, "pretrain", *settings(tmp_path / "no", dataset), log=log).wait(60) == 1
        assert "asks for a token, and did not accept this command's" in log.read_text()
        silent = replace(cluster, token=None)
        assert submit(silent, "pretrain", *settings(tmp_path / "no", dataset), log=log).wait(60) == 1
        assert "this command sent none" in log.read_text()
    for storage in (tmp_path / "literal", tmp_path / "ours"):
        assert record_of(storage) == record_of(undisturbed)
        assert_wandb_complete(storage)


@pytest.mark.slow
def test_run_is_continued_when_its_driver_is_killed_and_not_when_it_is_stopped(
    cluster: Cluster, jobs: Jobs, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    follower = submit(cluster, "pretrain", *settings(tmp_path, dataset), log=log)
    wait_until(lambda: logged_steps(tmp_path) >= 25, follower)
    (driver,) = drivers("smoke")
    kill(driver)
    wait_until(lambda: "resumed" in events_of(tmp_path), follower)
    wait_until(lambda: logged_steps(tmp_path) >= 45, follower)
    last = jobs.get("smoke")
    assert last.continues is not None

    listed = CliRunner().invoke(app, ["jobs", "list", "--address", cluster.url])
    assert [line.split()[2] for line in listed.stdout.splitlines() if last.origin in line] == ["failed", "running"]
    told = CliRunner().invoke(app, ["jobs", "status", "smoke", "--address", cluster.url])
    assert (told.exit_code, last.id in told.stdout, "running" in told.stdout) == (0, True, True)
    stop = CliRunner().invoke(app, ["jobs", "stop", "smoke", "--address", cluster.url])
    assert (stop.exit_code, stop.stdout) == (0, f"job {last.id}: stopped\n")
    assert follower.wait(60) == 130
    stopped = event_rows(tmp_path)[-1]
    assert stopped["event"] == "stopped"
    assert 45 <= stopped["step"] < 100
    assert f"job {last.id} continues the run" in log.read_text()

    assert finish(start(*pretrain(tmp_path, dataset), log=log), log) == 0  # on this machine, by the person
    resumed = [row for row in event_rows(tmp_path) if row["event"] == "resumed"]
    assert resumed[0]["continues_job"] == last.origin
    assert resumed[-1]["from_step"] == stopped["step"]
    assert record_of(tmp_path) == record_of(undisturbed)
    assert_wandb_complete(tmp_path)
    assert [job for job in jobs.all() if job.origin == last.origin][-1].id == last.id  # nobody submitted it again


@pytest.mark.slow
def test_dataset_is_built_by_a_job(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("\n\n".join(f"A line of text, number {i}." for i in range(2000)))
    config = tmp_path / "mytext.yaml"
    config.write_text(
        "name: mytext\noutput: datasets/mytext\nsources:\n  - {name: notes, path: notes, document_separator: '^$'}\n"
        "tokenizer: {train: {vocab_size: 300}}\n"
    )
    output, log = tmp_path / "out", tmp_path / "log"
    wanted = (f"output={output}", f"sources.0.path={tmp_path / 'notes'}")
    assert finish(submit(cluster, "data", str(config), *wanted, log=log), log) == 0
    assert Dataset.open(str(output)).manifest.tokens > 0


def script(cluster: Cluster, jobs: Jobs, code: str) -> str:
    """Submit a little program, so that following is tested without a training."""
    return jobs._client.submit_job(entrypoint=f"python -c {shlex.quote(code)}")


LINES = "import time\nfor i in range(40): print('line', i, 'x' * 500, flush=True); time.sleep(0.1)\nprint('last')"
TEXT = "".join(f"line {i} {'x' * 500}\n" for i in range(40)) + "last\n"


class CutWire:
    """A TCP forwarder whose connections break after so many bytes from the server, the first time ones."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._port = port
        self._cuts = cuts
        self.broken = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, from_server: bool) -> None:
        passed = 0
        try:
            while data := source.recv(1024):
                target.sendall(data)
                passed += len(data)
                if from_server and self._cuts and passed > self._cuts[0]:
                    self._cuts.pop(0)
                    self.broken += 1
                    break
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()


@pytest.mark.slow
def test_following_resumes_where_it_was_when_the_connection_is_cut(cluster: Cluster, jobs: Jobs) -> None:
    wire = CutWire(cluster.dashboard_port, cuts=[4_000, 9_000])
    try:
        job = script(cluster, jobs, LINES)
        through = Jobs(wire.url)
        written: list[str] = []
        said: list[str] = []
        end = through.follow(jobs.get(job), written.append, said.append)
    finally:
        wire.close()
    assert (end.status, wire.broken) == ("SUCCEEDED", 2)
    assert "".join(written).endswith(TEXT)
    assert "".join(written).count("line 7 ") == 1
    assert any("was lost" in text for text in said)


@pytest.mark.slow
def test_job_is_unharmed_when_the_terminal_that_follows_it_is_closed(
    cluster: Cluster, jobs: Jobs, tmp_path: Path
) -> None:
    job = script(cluster, jobs, LINES)
    log = tmp_path / "log"
    follower = start(
        "jobs", "logs", job, "--follow", "--address", cluster.url, log=log, environment=cluster.environment
    )
    wait_until(lambda: "line 3" in log.read_text(), follower)
    follower.send_signal(signal.SIGHUP)
    assert follower.wait(30) != 0
    assert jobs.follow(jobs.get(job), lambda text: None, print).status == "SUCCEEDED"


def refusals(storage: Path, dataset: Path) -> Iterator[tuple[str, list[str], str]]:
    """Ten bad submissions: what is wrong, the settings that make it so, and the cure that must be named."""
    good = settings(storage, dataset)
    damaged = storage / "damaged"
    shutil.copytree(dataset, damaged)
    shard = next((damaged / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-8])
    yield "unknown key", [*good, "train.max_step=5"], "train.max_steps"
    yield "relative storage", [*good, "storage=runs"], "storage=/shared/"
    yield "relative dataset", [*good, "data.dataset=datasets/x"], "data.dataset=/shared/"
    yield "absurd value", [*good, "train.global_batch_size=0"], "must be at least 1"
    yield "no dataset", [*good, f"data.dataset={storage}/none"], "data build"
    yield "damaged dataset", [*good, f"data.dataset={damaged}"], "rebuild with `data build"
    yield "storage that cannot be written", [*good, "storage=/proc/runs"], "Give a directory that you may write"
    yield "too many workers", [*good, "resources.workers=7"], "Lower resources.workers"
    yield "tracking without a key", [*good, "wandb.mode=online"], "wandb.mode=offline"
    yield "GPUs that are not there", [*good, "resources.gpus_per_worker=1"], "gpus_per_worker=0"
    yield "offload on CPUs", [*good, "zero.offload_optimizer=cpu"], "Leave zero.offload_optimizer out"


@pytest.mark.slow
def test_bad_submissions_are_refused_before_a_worker_starts(cluster: Cluster, dataset: Path, tmp_path: Path) -> None:
    for what, arguments, cure in refusals(tmp_path, dataset):
        log = tmp_path / what.replace(" ", "-")
        code = submit(cluster, "pretrain", *arguments, log=log).wait(120)
        assert (code in (1, 2), cure in log.read_text(), "starting workers" in log.read_text()) == (
            True,
            True,
            False,
        ), (what, log.read_text())
        assert not (tmp_path / "smoke" / "run.json").exists()


@pytest.mark.slow
def test_submission_is_refused_when_the_run_is_held(cluster: Cluster, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "smoke").mkdir()
    log = tmp_path / "log"
    with hold(tmp_path / "smoke"):
        assert submit(cluster, "pretrain", *settings(tmp_path, dataset), log=log).wait(120) == 75
    assert "two drivers would spoil each other's record" in log.read_text()


@pytest.mark.slow
def test_key_of_wandb_reaches_the_run_and_is_nowhere_in_clear(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = new_cluster()
    (cluster.directory / "home").mkdir()
    (cluster.directory / "home" / ".netrc").write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    log = tmp_path / "log"
    try:
        cluster.start()
        arguments = [*settings(tmp_path, dataset), "train.max_steps=20", "wandb.mode=auto"]
        assert finish(submit(cluster, "pretrain", *arguments, log=log), log) == 0
        details = [job.model_dump(mode="json") for job in Jobs(cluster.url)._client.list_jobs()]
        mode = json.loads((tmp_path / "smoke" / "run.json").read_text())["wandb"]["mode"]
        assert mode == "online"  # the key was found, though nobody answers here
        assert SECRET not in json.dumps(details)
        for directory in (tmp_path, cluster.directory / "h"):
            for path in directory.rglob("*"):
                if path.is_file():
                    assert SECRET.encode() not in path.read_bytes(), path
    finally:
        cluster.stop()


def test_cluster_that_does_not_answer_is_named_with_the_remedy() -> None:
    with pytest.raises(JobError, match=r"cluster at http://127\.0\.0\.1:9 does not answer.*dashboard"):
        Jobs("http://127.0.0.1:9")
