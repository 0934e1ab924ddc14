"""What is said of warm-ups and decays that do not fit into a run."""

from __future__ import annotations

import pytest

from cluster.config import RunConfig, TrainConfig
from cluster.never_reached import never_reached
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.config import DataConfig
from llm.config import ScheduleConfig


def make_config(*, until_step: int | None = None, **schedule: object) -> RunConfig:
    stages = () if until_step is None else (BatchSizeStage(until_step=until_step, global_batch_size=8),)
    return RunConfig(
        name="run",
        data=DataConfig(dataset="data"),
        train=TrainConfig(max_steps=100, batch_size_warmup=stages),
        schedule=ScheduleConfig(**{"warmup_steps": 10, **schedule}),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "config",
    [
        make_config(),
        make_config(warmup_steps=100),  # its last step has the peak
        make_config(until_step=99),
        make_config(name="wsd", decay_steps=90),
    ],
)
def test_nothing_is_said_when_all_is_reached(config: RunConfig) -> None:
    assert never_reached(config) == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            make_config(warmup_steps=101),
            "schedule.warmup_steps is 101 and train.max_steps 100: the learning rate never reaches its peak. Lower the "
            "one, or raise the other.",
        ),
        (
            make_config(name="wsd", decay_steps=91),
            "schedule.warmup_steps is 10, and of train.max_steps 100 the decay takes all after step 9: the learning "
            "rate falls before it reaches its peak. Shorten one of them (schedule.decay_steps is the decay), or raise "
            "train.max_steps.",
        ),
        (
            make_config(until_step=100),
            "train.batch_size_warmup lasts until step 100 and train.max_steps is 100: no step has the 32 sequences of "
            "train.global_batch_size. End the warm-up earlier, or raise train.max_steps.",
        ),
    ],
)
def test_what_is_never_reached_is_told_with_the_remedy(config: RunConfig, told: str) -> None:
    assert never_reached(config) == [told]
