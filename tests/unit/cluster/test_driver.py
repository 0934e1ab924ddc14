"""What the driver refuses before it touches anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_run

from cluster.config import RunConfig
from cluster.driver import _open_plan
from cluster.faults.config import HealingConfig
from cluster.healing import HEALING, Decisions
from data_pipeline.config import MixtureEntry
from data_pipeline.errors import OrderError
from data_pipeline.skip_ledger import SkipLedger


@pytest.fixture
def to_the_end(dataset: Path, tmp_path: Path) -> RunConfig:
    """A run whose last step takes the last whole batch of its one epoch."""
    config = tiny_run(tmp_path, dataset)
    once = replace(config.data, dataset=(MixtureEntry(path=str(dataset), max_epochs=1),))
    config = replace(config, data=once, train=replace(config.train, max_steps=1))
    possible = (_open_plan(config, {}).total_sequences or 0) // config.train.global_batch_size
    return replace(config, train=replace(config.train, max_steps=possible))


def test_run_is_accepted_when_its_data_last(to_the_end: RunConfig) -> None:
    _open_plan(to_the_end, {})


def test_run_is_refused_when_its_data_end_without_what_healing_left_out(to_the_end: RunConfig) -> None:
    skips = SkipLedger().add(0, 2 * to_the_end.train.global_batch_size)
    with pytest.raises(OrderError, match="steps are possible"):
        _open_plan(to_the_end, {HEALING: Decisions(skips=skips).to_json()})


def test_run_is_refused_when_its_data_end_without_what_the_configuration_leaves_out(to_the_end: RunConfig) -> None:
    healing = HealingConfig(skip_sequences=((0, 2 * to_the_end.train.global_batch_size),))
    with pytest.raises(OrderError, match="steps are possible"):
        _open_plan(replace(to_the_end, healing=healing), {})
