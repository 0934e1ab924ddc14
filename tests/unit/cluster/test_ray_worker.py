"""What our trainer leaves out of Ray's, held against the installed Ray."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.ray_worker import LeanTrainer


@pytest.mark.parametrize(
    ("private_cluster", "left_out"),
    [(True, {"DatasetsCallback", "PlacementGroupCleanerCallback"}), (False, {"DatasetsCallback"})],
)
def test_trainer_leaves_out_what_is_unused_and_nothing_else(
    private_cluster: bool, left_out: set[str], tmp_path: Path
) -> None:
    trainer = LeanTrainer(
        private_cluster=private_cluster,
        train_loop_per_worker=print,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="x", storage_path=str(tmp_path)),
    )
    with mock.patch.object(DataParallelTrainer, "running_in_local_mode", False, create=True):
        whole = {type(each).__name__ for each in DataParallelTrainer._create_default_callbacks(trainer)}
        lean = {type(each).__name__ for each in trainer._create_default_callbacks()}
    assert whole - lean == left_out
