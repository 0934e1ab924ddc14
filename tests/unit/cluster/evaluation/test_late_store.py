"""What is left to evaluate, read from a store that does not always answer."""

from __future__ import annotations

import pytest
from faulty_s3 import Fault, FaultyS3

from cluster.config import RunConfig
from cluster.evaluation.late import read_outstanding
from cluster.record.logs import EventsLog, StepLog
from cluster.run_directory import RunDirectory
from cluster.storage.object_path import ObjectPath
from cluster.storage.retry import Backoff
from data_pipeline.config import DataConfig


@pytest.mark.parametrize("log", ["metrics", "events"])
def test_record_is_read_when_the_store_fails_for_longer_than_a_request(
    log: str, store: ObjectPath, server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(name="run", storage=str(store), data=DataConfig(dataset="/data"))
    directory = store / "run"
    RunDirectory(directory).create(config, "name: run\n")
    metrics = StepLog(directory / "metrics.jsonl", attempt=1, after_step=0, clock=lambda: 0.0)
    metrics.write("eval", 20, {"name": "a"})
    metrics.close()
    EventsLog(directory, clock=lambda: 0.0, token=1).write("started")
    monkeypatch.setattr(Backoff, "wait_seconds", lambda backoff, failures: 0.0)
    with server.failing(Fault(kind="error", request=f"GET .*{log}", times=6)):  # one call asks four times
        _, recorded = read_outstanding(config, [], step=20)
    assert ("eval", "a", 20) in recorded.lines
