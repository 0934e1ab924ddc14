"""What a configuration leaves open, and what is refused once it is known."""

from __future__ import annotations

import pytest

from cluster.config import RunConfig, TrainConfig, ZeroConfig
from cluster.errors import RunRefusedError
from cluster.resolution import resolve_layout
from cluster.run_directory import config_as_dict
from cluster.topology import Topology
from data_pipeline.config import DataConfig
from llm.config import ModelConfig, RopeScaling


def make_config(zero: ZeroConfig) -> RunConfig:
    return RunConfig(name="run", data=DataConfig(dataset="data"), train=TrainConfig(precision="bf16"), zero=zero)


@pytest.mark.parametrize(
    ("zero", "problem"),
    [
        (ZeroConfig(stage=2, offload_optimizer="cpu"), r"zero\.offload_optimizer is 'cpu' and the workers compute on"),
        (ZeroConfig(stage=1, reduce_bucket_elements=9), r"zero\.reduce_bucket_elements is 9 at zero\.stage 1 in bf16"),
    ],
)
def test_layout_is_refused_when_a_zero_option_cannot_be_served(zero: ZeroConfig, problem: str) -> None:
    with pytest.raises(RunRefusedError, match=problem):
        resolve_layout(make_config(zero), Topology(world_size=2), zero_stage=zero.stage)


def test_layout_takes_no_zero_option_when_the_engine_is_plain_torch() -> None:
    layout, _ = resolve_layout(make_config(ZeroConfig(stage=2, offload_optimizer="cpu")), Topology(), zero_stage=None)
    assert layout.zero_stage is None


def test_model_is_the_same_when_it_was_written_as_plain_values() -> None:
    model = ModelConfig(
        rope_scaling=RopeScaling(rope_type="llama3", factor=4.0, original_max_position_embeddings=8),
        sliding_window=4,
        layer_types=("sliding_attention", "full_attention"),
    )
    plain = config_as_dict(RunConfig(name="run", data=DataConfig(dataset="data"), model=model))["model"]
    assert ModelConfig.from_json(plain) == model


def test_model_has_defaults_when_an_older_version_did_not_know_a_key() -> None:
    assert ModelConfig.from_json({"hidden_size": 64}) == ModelConfig(hidden_size=64)
