"""What a configuration leaves open, and what is refused once it is known."""

from __future__ import annotations

import pytest

from cluster.config import RunConfig, TrainConfig, ZeroConfig
from cluster.errors import RunRefusedError
from cluster.resolution import recorded_model, resolve_layout
from cluster.topology import Topology
from data_pipeline.config import DataConfig


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


def test_recorded_model_is_refused_when_a_later_release_wrote_it() -> None:
    with pytest.raises(RunRefusedError, match=r"(?s)does not know .*hidden_sizes.* Use the release that wrote it\."):
        recorded_model({"hidden_sizes": [1, 2]})
