"""What a healer makes up for at the beginning of an attempt."""

from __future__ import annotations

from typing import Any, cast

import pytest
from faulty_s3 import Fault, FaultyS3

from cluster.config import RunConfig
from cluster.continuation import Continuation
from cluster.healer import ROLLED_BACK, Healer
from cluster.healing import Decisions, Rollback
from cluster.record.logs import EventsLog
from cluster.storage.object_path import ObjectPath
from cluster.storage.retry import Backoff
from cluster.topology import Topology
from data_pipeline.config import DataConfig


def test_rollback_is_not_told_twice_when_the_store_fails_for_longer_than_a_request(
    store: ObjectPath, server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(name="run", storage=str(store), data=DataConfig(dataset="/data"))
    told, untold = (Rollback(step=step, to_step=step - 4, start=0, stop=8) for step in (8, 16))
    decisions = Decisions(skips=Decisions.of({}, config.healing).skips, rollbacks=(told, untold))
    EventsLog(store / "run", clock=lambda: 0.0, token=1).write(ROLLED_BACK, step=told.step, to_step=told.to_step)
    posted: list[dict[str, Any]] = []
    healer = Healer(
        config,
        Continuation(step=4, decisions=decisions, changes=()),
        plan=cast(Any, None),
        topology=Topology(),
        collectives=cast(Any, None),
        post=posted.append,
    )
    monkeypatch.setattr(Backoff, "wait_seconds", lambda backoff, failures: 0.0)
    with server.failing(Fault(kind="error", request="GET .*events", times=6)):  # one call asks four times
        healer.tell_untold()
    assert [each["step"] for each in posted if each["event"] == ROLLED_BACK] == [untold.step]
