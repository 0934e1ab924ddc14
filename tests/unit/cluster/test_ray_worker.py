"""What our trainer leaves out of Ray's, held against the installed Ray."""

from __future__ import annotations

from pathlib import Path

import ray.train
import ray.train.torch

from cluster.ray_worker import LeanTrainer


def test_trainer_leaves_out_what_is_unused_and_nothing_else(tmp_path: Path) -> None:
    trainer = LeanTrainer(
        print,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="x", storage_path=str(tmp_path)),
    )
    whole = {type(each).__name__ for each in ray.train.torch.TorchTrainer._create_default_callbacks(trainer)}
    lean = {type(each).__name__ for each in trainer._create_default_callbacks()}
    assert whole - lean == {"DatasetsCallback"}
