"""The Resume law on the real command with its run in an object store, and the verbs that read such a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import finish, kill, start, training_workers, wait_until
from runs import STEPS, event_rows, events_of, logged_steps, pretrain, record_of

from cluster.run_directory import PUBLISHED_STEP, RunDirectory
from cluster.storage.operations import StoragePath, list_names, storage_path

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1300)]
PATIENCE_SECONDS = 400


def published(run: StoragePath) -> int:
    record = RunDirectory(run)
    return int(record.facts().get(PUBLISHED_STEP, 0)) if record.exists() else 0


def said_by(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_record_is_equal_when_a_worker_is_killed_and_then_the_command(
    undisturbed: Path, bucket: str, dataset: Path, tmp_path: Path
) -> None:
    """Equal, bit for bit, to the record of the same run in a directory."""
    storage, log = f"{bucket}/runs", tmp_path / "log"
    run = storage_path(storage) / "smoke"
    process = start(*pretrain(storage, dataset), log=log)
    wait_until(lambda: published(run) >= 10, process, PATIENCE_SECONDS)
    kill(training_workers(process.pid)[-1])  # the command must recover by itself
    wait_until(lambda: "resumed" in events_of(storage) and published(run) >= 30, process, PATIENCE_SECONDS)
    kill(process.pid)
    process.wait()

    assert finish(start(*pretrain(storage, dataset), log=log), log, PATIENCE_SECONDS) == 0
    assert record_of(storage) == record_of(undisturbed)
    events = events_of(storage)
    assert events.index("worker_lost") < events.index("resumed")
    assert event_rows(storage)[-1]["event"] == "finished"
    assert logged_steps(storage) == STEPS
    assert any(name.startswith("offline-run-") for name in list_names(run / "wandb"))
    assert (run / "report.html").is_file()
    assert f"report  {run}/report.html" in log.read_text()

    rows = json.loads(said_by("evaluate", str(run), "--json"))
    assert rows["step"] == STEPS
    page = tmp_path / "page.html"
    said_by("report", str(run), "--out", str(page))
    assert "Longhaul report</title>" in page.read_text()
    assert said_by("generate", str(run), "--prompt", "Emma", "--max-new-tokens", "4").startswith("Emma")
    assert "complete" in said_by("checkpoint", "list", str(run))
