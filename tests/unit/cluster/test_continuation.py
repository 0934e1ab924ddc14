"""What is said of checkpoints that are passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoint import CheckpointWriter, list_checkpoints, reject
from cluster.collectives import Collectives
from cluster.config import CheckpointConfig, RunConfig
from cluster.continuation import load_newest
from cluster.engine import MASTER, Fragment, FragmentState
from cluster.errors import CheckpointError
from cluster.topology import Topology
from data_pipeline.config import DataConfig

REASON = "the loss of step 5 is 3 with the loaded state and was 2 with the saved one"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose one checkpoint was rejected."""
    directory = tmp_path / "run"
    directory.mkdir()
    writer = CheckpointWriter(directory, attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
    writer.save(4, [FragmentState(Fragment("weight", "decay", (3,), 0, 3), {MASTER: torch.zeros(3)}, {})], {})
    writer.next_loss(2.0)
    writer.finish()
    reject(list_checkpoints(directory)[0], REASON, kind="loss")
    return directory


@pytest.fixture
def events_of_attempt(run: Path) -> Callable[[], list[dict[str, Any]]]:
    """Tries to continue the run, which has nothing to continue from, and gives what was posted."""

    def attempt() -> list[dict[str, Any]]:
        posted: list[dict[str, Any]] = []
        unused: Any = None
        with pytest.raises(CheckpointError, match="no checkpoint of run"):
            load_newest(
                unused,
                unused,
                config=RunConfig(name=run.name, storage=str(run.parent), data=DataConfig(dataset="unused")),
                plan=unused,
                topology=Topology(),
                collectives=Collectives(),
                post=posted.append,
            )
        return posted

    return attempt


def _record_event(run: Path, reason: str) -> None:
    row = {"event": "checkpoint_rejected", "step": 4, "reason": reason}
    (run / "events.jsonl").write_text(json.dumps(row) + "\n")


def test_rejection_is_posted_with_its_bare_reason_when_the_record_lacks_it(
    events_of_attempt: Callable[[], list[dict[str, Any]]],
) -> None:
    assert events_of_attempt() == [
        {"type": "event", "event": "checkpoint_rejected", "step": 4, "reason": REASON},
    ]


def test_rejection_is_not_posted_again_when_the_record_has_it(
    run: Path, events_of_attempt: Callable[[], list[dict[str, Any]]]
) -> None:
    _record_event(run, REASON)
    assert events_of_attempt() == []


def test_rejection_is_posted_when_the_record_has_only_an_earlier_one_of_the_step(
    run: Path, events_of_attempt: Callable[[], list[dict[str, Any]]]
) -> None:
    _record_event(run, "a file was cut short")
    assert len(events_of_attempt()) == 1
