"""The data plan of a run, opened again from its facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_run

from cluster.config import RunConfig
from cluster.errors import StorageError
from cluster.record.run_data import open_data
from cluster.resolution import open_plan
from cluster.run_directory import config_as_dict
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.errors import DatasetError
from data_pipeline.skip_ledger import SkipLedger

STAGES = (BatchSizeStage(until_step=2, global_batch_size=1), BatchSizeStage(until_step=4, global_batch_size=3))


def facts_of(config: RunConfig) -> dict[str, Any]:
    return {"config": config_as_dict(config), "data_plan": {"fingerprint": open_plan(config).fingerprint}}


@pytest.mark.parametrize("stages", [(), STAGES])
def test_batches_are_those_of_the_run(stages: tuple[BatchSizeStage, ...], dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset, train__batch_size_warmup=stages)
    found, plan = open_data(facts_of(config)), open_plan(config)
    for step in range(1, 8):
        assert found.batch_indices(step, SkipLedger()).tolist() == plan.batch_indices(step, SkipLedger()).tolist()


def test_batches_are_those_of_the_run_when_its_version_knew_no_warm_up(dataset: Path, tmp_path: Path) -> None:
    facts = facts_of(tiny_run(tmp_path, dataset))
    del facts["config"]["train"]["batch_size_warmup"]
    assert open_data(facts).position_after(2, SkipLedger()) == 12


def test_data_is_refused_when_the_facts_say_other_sizes(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset, train__batch_size_warmup=STAGES)
    other = replace(config, train=replace(config.train, batch_size_warmup=STAGES[:1]))
    facts = {**facts_of(config), "config": config_as_dict(other)}
    with pytest.raises(DatasetError, match="the run was trained on"):
        open_data(facts)
    facts["config"]["train"]["batch_size_warmup"] = [{"until_step": 3}]
    with pytest.raises(StorageError, match="does not say what the run was trained on"):
        open_data(facts)
