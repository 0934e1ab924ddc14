"""The Resume law where a step draws random numbers, has penalties and routes tokens to experts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attempts import attempt_alone, kill_attempt, losses_of, record_of
from gloo import run_ranks
from test_attempt import FP32_LOSS_TOLERANCE, attempt_on_ranks
from tiny import SilentLink, tiny_run

from cluster.checkpoint import list_checkpoints
from cluster.config import RunConfig
from cluster.record.logs import read_lines
from data_pipeline.batch_sizes import BatchSizeStage

GROWING = (BatchSizeStage(until_step=3, global_batch_size=2), BatchSizeStage(until_step=7, global_batch_size=5))


def rich_run(storage: Path, dataset: Path, **changes: Any) -> RunConfig:
    config = tiny_run(storage, dataset, train__batch_size_warmup=GROWING, train__z_loss_coefficient=1e-3, **changes)
    dropout = {f"{place}_dropout": 0.2 for place in ("embedding", "attention", "residual")}
    return replace(config, model=replace(config.model, num_experts=4, moe_intermediate_size=16, **dropout))


@pytest.fixture(scope="module")
def rich(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = rich_run(tmp_path_factory.mktemp("rich"), dataset)
    attempt_alone(config)
    return config


def test_penalties_are_logged_beside_the_loss(rich: RunConfig) -> None:
    rows = [row for row in read_lines(Path(rich.storage) / "tiny" / "metrics.jsonl") if row["kind"] == "train"]
    for row in rows:
        assert row["train/perplexity"] == math.exp(row["train/loss"])
        assert row["train/z_loss"] > 0
        assert row["router/smallest_load"] <= 1 <= row["router/largest_load"]


def test_resumed_record_is_bit_equal_when_every_step_is_saved_by_a_stop(
    rich: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = rich_run(tmp_path, dataset, checkpoint__every_steps=1)
    for step in range(1, 9):
        attempt_alone(config, link=SilentLink(stop_after=1))  # computes the next loss without a training step
        assert list_checkpoints(tmp_path / "tiny")[-1].step == step
    attempt_alone(config)
    assert record_of(config) == record_of(rich)


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size", "stage"), [pytest.param(2, 1, 2, marks=pytest.mark.slow), (2, 2, 3)]
)
def test_losses_agree_on_other_topologies(
    world_size: int, micro_batch_size: int, stage: int, rich: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = rich_run(tmp_path, dataset, train__micro_batch_size=micro_batch_size)
    kill_attempt(config, 6, published=4)
    run_ranks(attempt_on_ranks, world_size, replace(config, zero=replace(config.zero, stage=stage)))
    difference = np.abs(losses_of(config) - losses_of(rich)) / losses_of(rich)
    assert difference.max() <= FP32_LOSS_TOLERANCE
