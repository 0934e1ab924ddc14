"""Which checkpoint of a run is taken for evaluation and generation, and what is said of those passed over."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from cluster.checkpoint import CheckpointWriter, list_checkpoints
from cluster.config import CheckpointConfig
from cluster.engines.protocol import MASTER, Fragment, FragmentState
from cluster.inference import _resolve


def _save(run: Path, step: int) -> None:
    writer = CheckpointWriter(run, attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
    writer.save(step, [FragmentState(Fragment("weight", "decay", (3,), 0, 3), {MASTER: torch.zeros(3)}, {})], {})
    writer.next_loss(2.0)
    writer.finish()


def test_damaged_checkpoint_is_named_when_an_older_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.json").write_text("{}")
    for step in (4, 8):
        _save(tmp_path, step)
    damaged = list_checkpoints(tmp_path)[-1]
    assert damaged.manifest is not None
    path = damaged.directory / damaged.manifest.files[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for _ in range(2):  # found, then remembered
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            info, _run = _resolve(tmp_path)
        assert info.step == 4
        (message,) = caplog.messages
        assert message.startswith(f"step 4 is taken, since step 8 cannot be used: checkpoint file {path} was altered")
