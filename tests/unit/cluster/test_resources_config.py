"""What may be asked for in workers, and how often failures are forgiven."""

from __future__ import annotations

import pytest

from cluster.config import ResourcesConfig, RunConfig, TrainConfig
from cluster.faults.config import FaultsConfig
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.config import DataConfig
from llm.config import ModelConfig


@pytest.mark.parametrize(("workers", "bounds"), [(3, (3, 3)), ((1, 4), (1, 4)), ((2, 2), (2, 2))])
def test_workers_are_bounds(workers: int | tuple[int, int], bounds: tuple[int, int]) -> None:
    resources = ResourcesConfig(workers=workers)
    assert (resources.min_workers, resources.max_workers) == bounds


@pytest.mark.parametrize(
    ("workers", "problem"),
    [
        (0, "workers is 0, and must be at least 1."),
        ((0, 2), "workers is 0, and must be at least 1."),
        ((3, 2), r"workers are \[3, 2\]: name the least number first, \[least, most\]."),
    ],
)
def test_workers_are_refused_when_they_are_no_bounds(workers: int | tuple[int, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ResourcesConfig(workers=workers)


def test_run_is_refused_when_the_most_workers_outnumber_the_batch() -> None:
    with pytest.raises(ValueError, match=r"resources.workers is 9 and train.global_batch_size 8: .* would idle"):
        RunConfig(
            name="run",
            data=DataConfig(dataset="data"),
            train=TrainConfig(global_batch_size=8),
            resources=ResourcesConfig(workers=(1, 9)),
        )


def test_run_is_refused_when_the_most_workers_outnumber_a_batch_of_the_warm_up() -> None:
    train = TrainConfig(global_batch_size=8, batch_size_warmup=(BatchSizeStage(until_step=9, global_batch_size=2),))
    with pytest.raises(ValueError, match=r"workers is 3 and the smallest of train.batch_size_warmup 2: .* would idle"):
        RunConfig(name="run", data=DataConfig(dataset="data"), train=train, resources=ResourcesConfig(workers=3))


def test_run_is_refused_when_its_sequences_are_longer_than_the_model_allows() -> None:
    data = DataConfig(dataset="data", seq_len=65)
    with pytest.raises(ValueError, match=r"data\.seq_len is 65 and model\.max_position_embeddings 64: .* Lower"):
        RunConfig(name="run", data=data, model=ModelConfig(max_position_embeddings=64))
    RunConfig(name="run", data=data, model=ModelConfig(max_position_embeddings=65))


def test_train_config_is_refused_when_its_warm_up_does_not_grow() -> None:
    with pytest.raises(ValueError, match=r"batch_size_warmup leads from 8 sequences to 8"):
        TrainConfig(global_batch_size=8, batch_size_warmup=(BatchSizeStage(until_step=9, global_batch_size=8),))


@pytest.mark.parametrize("name", ["max_preemptions", "max_lost_nodes", "max_lost_workers", "max_errors"])
def test_budget_is_a_count_or_without_limit(name: str) -> None:
    assert getattr(FaultsConfig(**{name: -1}), name) == -1
    with pytest.raises(ValueError, match=f"{name} is -2: it is a count, or -1 for no limit."):
        FaultsConfig(**{name: -2})
