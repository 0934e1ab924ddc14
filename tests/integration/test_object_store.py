"""A run in an object store, without Ray: the Resume law, and what is done with a run afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt_alone, kill_attempt_of_store, record_of
from tiny import tiny_run

from cluster import driver
from cluster.checkpoint import list_checkpoints
from cluster.config import RunConfig
from cluster.driver import Launch, run_training
from cluster.inference import load_run
from cluster.on_ray.ray_cluster import Cluster
from cluster.on_ray.session import Desk
from cluster.record.logs import read_lines
from cluster.run_directory import RunDirectory
from cluster.storage.operations import list_names, storage_path


@pytest.mark.parametrize(
    ("at", "published"),
    [(7, 4), pytest.param("cluster.checkpoint.writer.CheckpointWriter._collect", None, marks=pytest.mark.slow)],
)
def test_record_is_equal_when_an_attempt_was_killed_and_continued(
    at: int | str, published: int | None, bucket: str, dataset: Path, tmp_path: Path
) -> None:
    """Bit for bit what the same run has in a directory."""
    undisturbed = tiny_run(tmp_path, dataset)
    attempt_alone(undisturbed)
    config = tiny_run(f"{bucket}/runs", dataset)
    kill_attempt_of_store(config, at, published=published)
    attempt_alone(config)
    assert record_of(config) == record_of(undisturbed)
    run = storage_path(config.storage) / "tiny"
    assert [info.step for info in list_checkpoints(run)] == [4, 8, 12]
    assert load_run(str(run)).step == 12


@pytest.mark.slow
def test_old_run_is_set_aside_and_a_new_one_begun_when_fresh(
    bucket: str, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_here(config: RunConfig, desk: Desk, *, gpus_per_worker: int) -> dict[str, Any]:
        for event in attempt_alone(config).events():
            desk.events.write(event.pop("event"), **{key: value for key, value in event.items() if key != "type"})
        return {"step": config.train.max_steps, "finished": True}

    @contextmanager
    def nowhere(address: str | None) -> Iterator[Cluster]:
        yield Cluster(attached=False, dashboard_url=None)

    monkeypatch.setattr(driver, "connect", nowhere)
    monkeypatch.setattr(driver, "check_cluster", lambda *_, **__: 0)
    monkeypatch.setattr(driver, "train_on_ray", train_here)
    config = tiny_run(f"{bucket}/runs", dataset)
    run = storage_path(config.storage) / "tiny"
    ids = []
    for fresh in (False, True):
        launch = Launch(
            resolved_yaml="name: tiny\n", wandb_mode="disabled", wandb_server="http://127.0.0.1:9", fresh=fresh
        )
        assert run_training(config, launch, lambda message: None).status == "finished"
        ids.append(RunDirectory(run).facts()["id"])
        assert [row["event"] for row in read_lines(run / "events.jsonl")][-1] == "finished"
    (aside,) = (name for name in list_names(run.parent) if name != "tiny")
    assert RunDirectory(run.parent / aside).facts()["id"] == ids[0] != ids[1]
    assert [info.step for info in list_checkpoints(run.parent / aside)] == [4, 8, 12]
    assert "postmortem.md" in list_names(run)
