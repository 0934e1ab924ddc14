"""What the model of a checkpoint computes with, where it is evaluated beside the training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster import inference
from cluster.checkpoint import list_checkpoints
from cluster.config import RunConfig
from cluster.evaluation.task import _model
from cluster.resolution import model_of_run
from cluster.topology import Topology
from data_pipeline.dataset import Dataset
from llm.attention import AttentionNeeds, ResolvedAttention


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_attention_is_chosen_for_the_device_and_the_numbers_that_compute(
    monkeypatch: pytest.MonkeyPatch, trained: RunConfig, dataset: Path, precision: str, dtype: torch.dtype
) -> None:
    asked: list[AttentionNeeds] = []

    def choose(name: str, needs: AttentionNeeds) -> ResolvedAttention:
        asked.append(needs)
        return ResolvedAttention("eager", "")

    info = list_checkpoints(Path(trained.storage) / trained.name)[-1]
    assert info.manifest is not None
    monkeypatch.setitem(info.manifest.run["layout"], "precision", precision)
    monkeypatch.setattr(inference, "resolve_attention", choose)
    shape = model_of_run(trained, Dataset.open(dataset))
    _model(shape, info, Topology(device="meta"))  # a device that every machine has
    assert [(needs.device_type, needs.dtype, needs.training) for needs in asked] == [("meta", dtype, False)]
