"""The driver of a run that begins with given weights: what it checks before anything is started, and when."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt_alone, kill_attempt
from exports import write_export
from tiny import build_tiny_dataset, tiny_run

from cluster import driver
from cluster.config import RunConfig
from cluster.driver import Launch, RunOutcome, run_training
from cluster.errors import RunRefusedError
from cluster.initial_weights import find_initial_weights
from cluster.on_ray.ray_cluster import Cluster
from cluster.on_ray.session import Desk

LAUNCH = Launch(resolved_yaml="name: tiny\n", wandb_mode="disabled", wandb_server="http://127.0.0.1:9")


@pytest.fixture
def asked_of_newcomers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The weights that nodes were asked for that joined before the first step and after the last."""
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(driver, "examine_node", lambda *_, weights: asked.append(weights))
    return asked


@pytest.fixture(autouse=True)
def asked_of_nodes(monkeypatch: pytest.MonkeyPatch, asked_of_newcomers: list[dict[str, str]]) -> list[dict[str, str]]:
    """The weights that nodes were asked for, by command; attempts run in this process, with plain torch."""
    asked: list[dict[str, str]] = []

    def train_here(config: RunConfig, desk: Desk, *, gpus_per_worker: int) -> dict[str, Any]:
        desk.examine("n1")
        attempt_alone(config)
        desk.examine("n2")
        return {"step": config.train.max_steps, "finished": True}

    @contextmanager
    def nowhere(address: str | None) -> Iterator[Cluster]:
        yield Cluster(attached=address is not None, dashboard_url=None)

    def check(*_: Any, weights: dict[str, str], **__: Any) -> int:
        asked.append(weights)
        return 0

    monkeypatch.setattr(driver, "connect", nowhere)
    monkeypatch.setattr(driver, "check_cluster", check)
    monkeypatch.setattr(driver, "train_on_ray", train_here)
    return asked


def command(config: RunConfig) -> RunOutcome:
    return run_training(config, LAUNCH, lambda message: None)


@pytest.fixture(scope="module")
def source(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of a run of 4 steps."""
    place = tmp_path_factory.mktemp("source")
    config = tiny_run(place, dataset, name="source", train__max_steps=4)
    attempt_alone(config)
    return write_export(config, place / "exported")


def child(storage: Path, dataset: Path, source: Path) -> RunConfig:
    config = tiny_run(storage, dataset, name="child", train__max_steps=8)
    return replace(
        config,
        initialize_from=str(source),
        model=replace(config.model, vocab_size=find_initial_weights(str(source)).model.vocab_size),
    )


def test_every_node_is_asked_for_the_weights_when_a_run_begins(
    dataset: Path, source: Path, tmp_path: Path, asked_of_nodes: list[dict[str, str]]
) -> None:
    assert command(child(tmp_path, dataset, source)).step == 8
    assert asked_of_nodes == [{str(source): find_initial_weights(str(source)).fingerprint}]


def test_a_node_that_joins_is_asked_for_the_weights_until_there_is_a_checkpoint(
    dataset: Path, source: Path, tmp_path: Path, asked_of_newcomers: list[dict[str, str]]
) -> None:
    command(child(tmp_path, dataset, source))
    assert asked_of_newcomers == [{str(source): find_initial_weights(str(source)).fingerprint}, {}]


def test_run_goes_on_when_the_weights_it_began_with_are_gone(
    dataset: Path, source: Path, tmp_path: Path, asked_of_nodes: list[dict[str, str]]
) -> None:
    copied = shutil.copytree(source, tmp_path / "model")
    config = child(tmp_path / "runs", dataset, copied)
    kill_attempt(config, 6, published=4)
    shutil.rmtree(copied)
    assert command(config).status == "finished"
    assert asked_of_nodes == [{}]


def test_nothing_is_left_of_a_run_whose_weights_are_of_another_tokenizer(
    source: Path, tmp_path: Path, asked_of_nodes: list[dict[str, str]]
) -> None:
    other = build_tiny_dataset(tmp_path / "data", vocab_size=380)
    with pytest.raises(RunRefusedError, match="their token ids mean different text"):
        command(child(tmp_path / "runs", other, source))
    assert not (tmp_path / "runs" / "child").exists()
    assert asked_of_nodes == []
