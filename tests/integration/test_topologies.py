"""A run that goes on at another ZeRO stage with other workers, again and again: the real command, a real cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from clusters import Cluster, running_cluster
from loaded_state import LOADED, startup_code
from processes import finish, start
from runs import event_rows, record_of

from cluster.checkpoint import list_checkpoints
from cluster.checkpoint.comparison import compare
from cluster.checkpoint.manifest import step_directory

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

FURTHER_STEPS = 20
"""Steps after a change that are compared: the Resume law's."""
LAW = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest relative difference of a loss from that of the run that stayed where it was: the Resume law's."""
COMMAND_SECONDS = 600.0
"""Longest time of one command: some 20 s of it are the start, several times that on a busy machine."""


@dataclass(frozen=True)
class Place:
    """What a leg of a run trains on."""

    stage: int
    workers: int

    def __str__(self) -> str:
        return f"z{self.stage}w{self.workers}"


def _places(stages: str, workers: str) -> list[Place]:
    return [Place(int(stage), int(count)) for stage, count in zip(stages, workers, strict=True)]


CHAINS = {"fp32": _places("01230203132", "13241421234"), "bf16": _places("03210", "13124")}
"""Both change at every join; together they hold every ordered pair of stages."""
CHANGES = [
    pytest.param(precision, number, id=f"{precision}-{before}-{after}")
    for precision, chain in CHAINS.items()
    for number, (before, after) in enumerate(pairwise(chain), start=1)
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node with room for four workers, each of which saves what it has loaded."""
    with running_cluster(head_cpus=4, startup_code=startup_code()) as made:
        yield made


class Relay:
    """Legs of 40 steps, each from the checkpoint in the middle of the one before, at the next place of a chain.

    So the second half of a leg is what the leg after it would have trained had nothing changed.
    """

    def __init__(self, cluster: Cluster, dataset: Path, directory: Path) -> None:
        self._cluster = cluster
        self._dataset = dataset
        self._directory = directory
        self.leg = cache(self._train_leg)

    def _train_leg(self, precision: str, number: int) -> Path:
        """Storage of a leg, trained when it is first asked for."""
        storage = self._directory / f"{precision}-{number}"
        storage.mkdir()
        if number > 0:
            shutil.copytree(self.leg(precision, number - 1) / "smoke", storage / "smoke")
            shutil.rmtree(step_directory(storage / "smoke", (number + 1) * FURTHER_STEPS))
        place, log = CHAINS[precision][number], storage / "log"
        process = start(
            "pretrain",
            "smoke",
            f"storage={storage}",
            f"data.dataset={self._dataset}",
            f"train.max_steps={(number + 2) * FURTHER_STEPS}",
            f"train.precision={precision}",
            "train.micro_batch_size=2",
            "optimizer.learning_rate=1e-3",
            "schedule.name=constant",  # so that the rate does not depend on the steps asked for
            f"zero.stage={place.stage}",
            f"resources.workers={place.workers}",
            f"checkpoint.every_steps={FURTHER_STEPS}",
            "evaluation.every_steps=null",
            "wandb.mode=disabled",
            log=log,
            environment=self._cluster.driver_environment,
        )
        assert finish(process, log, COMMAND_SECONDS) == 0
        return storage


@pytest.fixture(scope="module")
def relay(cluster: Cluster, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Relay:
    """Of this module."""
    return Relay(cluster, dataset, tmp_path_factory.mktemp("topologies"))


def losses_of(storage: Path) -> list[float]:
    rows = [row for row in record_of(storage) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["train/loss"] for row in rows]


@pytest.mark.parametrize(("precision", "number"), CHANGES)
def test_twenty_further_losses_are_those_of_an_undisturbed_run_when_stage_and_workers_change(
    precision: str, number: int, relay: Relay
) -> None:
    stayed, changed = (relay.leg(precision, leg) for leg in (number - 1, number))
    resumed = [row for row in event_rows(changed) if row["event"] == "resumed"][-1]
    place = Place(resumed["layout"]["zero_stage"], resumed["layout"]["world_size"])
    assert (resumed["from_step"], place) == (number * FURTHER_STEPS, CHAINS[precision][number])
    assert resumed["layout"]["precision"] == precision
    further = slice(number * FURTHER_STEPS, (number + 1) * FURTHER_STEPS)
    losses, expected = (losses_of(storage)[further] for storage in (changed, stayed))
    assert len(losses) == len(expected) == FURTHER_STEPS
    apart = max(abs(loss - other) / abs(other) for loss, other in zip(losses, expected, strict=True))
    print(f"\n{precision} {CHAINS[precision][number - 1]} -> {place}: {apart:.1e} apart at most")
    assert apart <= LAW[precision]


@pytest.mark.parametrize(("precision", "number"), CHANGES)
def test_loaded_masters_and_moments_are_bit_equal_when_stage_and_workers_change(
    precision: str, number: int, relay: Relay
) -> None:
    step = number * FURTHER_STEPS
    stayed, changed = (relay.leg(precision, leg) for leg in (number - 1, number))
    saved, loaded = (
        {info.step: info for info in list_checkpoints(directory)}[step]
        for directory in (stayed / "smoke", changed / LOADED)
    )
    assert saved.manifest is not None
    assert loaded.manifest is not None
    before, after = CHAINS[precision][number - 1 : number + 1]
    assert (len(saved.manifest.files), len(loaded.manifest.files)) == (before.workers, after.workers)
    found = compare(saved, loaded, lambda size: None)
    parameters = len(saved.manifest.pieces)
    assert found.compared == {"exp_avg": parameters, "exp_avg_sq": parameters, "master": parameters}
    assert (found.tensors, found.scalars, found.structure) == ((), (), ())
