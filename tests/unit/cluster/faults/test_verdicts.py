"""The driver as judge, over a run directory."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ResourcesConfig, RunConfig, TrainConfig, ZeroConfig
from cluster.faults.config import FaultsConfig
from cluster.faults.failure import FailureKind, WorkerFailure
from cluster.faults.inquest import Case, Seat
from cluster.faults.verdicts import MICRO_BATCHES, Verdicts
from cluster.run_directory import RunDirectory
from data_pipeline.config import DataConfig

SEATS = {rank: Seat(rank=rank, node_id=f"n{rank}", node=f"10.0.0.{rank}", pid=rank, actor_id="") for rank in (0, 1)}


def config(micro_batch: int = 8, **faults: Any) -> RunConfig:
    return RunConfig(
        name="run",
        data=DataConfig(dataset="data"),
        train=TrainConfig(micro_batch_size=micro_batch),
        faults=FaultsConfig(**faults),
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    RunDirectory(tmp_path).create(config(), "name: run\n")
    return tmp_path


def verdicts_of(
    directory: Path, run: RunConfig, failures: list[WorkerFailure] | None = None, *, device: str = "H100"
) -> Verdicts:
    return Verdicts(run, directory, [] if failures is None else failures, device=device)


def begin(judge: Verdicts, workers: int = 2) -> list[str]:
    """Begin with a group; what the person is told."""
    said: list[str] = []
    judge.begin(workers, said.append)
    return said


def case(kind: FailureKind, number: str = "f1", *, rank: int = 1, step: int = 7, fatal: str | None = None) -> Case:
    failure = WorkerFailure(
        rank=rank,
        node=f"10.0.0.{rank}",
        pid=rank,
        kind=kind,
        step=step,
        error="it ended",
        traceback="",
        time_unix_seconds=1.0,
    )
    return Case(number=number, failures=(failure,), fatal=fatal)


def test_event_names_kind_rank_node_and_step(directory: Path) -> None:
    event = verdicts_of(directory, config()).judge(case("lost_worker"), SEATS)
    assert event == {
        "kind": "lost_worker",
        "rank": 1,
        "node": "10.0.0.1",
        "step": 7,
        "causes": {"1": "it ended"},
    }


def test_verdicts_stay_known_by_number(directory: Path) -> None:
    judge = verdicts_of(directory, config(max_lost_workers=1))
    judge.judge(case("lost_worker", "f1"), SEATS)
    judge.judge(case("lost_worker", "f2"), SEATS)
    assert judge.by_number == {"f1": "retry", "f2": "end"}
    assert judge.given_up is not None
    assert "faults.max_lost_workers is 1" in judge.given_up


def test_failures_before_a_checkpoint_count_no_more(directory: Path) -> None:
    judge = verdicts_of(directory, config(max_lost_workers=1))
    judge.judge(case("lost_worker", "f1"), SEATS)
    judge.checkpoint_saved()
    judge.judge(case("lost_worker", "f2"), SEATS)
    assert judge.by_number["f2"] == "retry"


def test_run_ends_in_the_words_of_the_worker_when_a_retry_is_in_vain(directory: Path) -> None:
    judge = verdicts_of(directory, config())
    judge.judge(case("error", fatal="the disk is full"), SEATS)
    assert (judge.by_number, judge.given_up) == ({"f1": "end"}, "the disk is full")


def test_failures_are_kept_for_the_post_mortem_with_the_cause_first(directory: Path) -> None:
    kept: list[WorkerFailure] = []
    judge = verdicts_of(directory, config(), kept)
    broken = replace(case("error", rank=0).failures[0], error="RuntimeError: Connection closed by peer")
    whole = Case(number="f1", failures=(broken, *case("lost_worker").failures), fatal=None)
    judge.judge(whole, SEATS)
    assert [each.rank for each in kept] == [1, 0]


def test_lost_nodes_are_those_of_the_last_group_alone(directory: Path) -> None:
    judge = verdicts_of(directory, config())
    judge.judge(case("lost_node"), SEATS)
    assert judge.lost_nodes == {"n1"}
    begin(judge)
    assert judge.lost_nodes == set()


HALVING = config(on_oom="halve_micro_batch")


@pytest.fixture
def halved(directory: Path) -> Path:
    """Directory of a run of two workers that halved its micro-batch of 8."""
    judge = verdicts_of(directory, HALVING)
    begin(judge)
    judge.judge(case("out_of_memory"), SEATS)
    begin(judge)
    return directory


def test_half_the_micro_batch_is_taken_when_memory_runs_out(directory: Path) -> None:
    judge = verdicts_of(directory, HALVING)
    begin(judge)
    judge.judge(case("out_of_memory"), SEATS)
    assert judge.decided == "refit"
    assert begin(judge) == []
    assert judge.news() == [{"event": "micro_batch_halved", "step": 7, "failed": 8, "taken": 4}]
    assert judge.config.train == replace(HALVING.train, micro_batch_size=4)


def test_half_the_micro_batch_is_taken_by_the_next_command_on_the_same_footing(halved: Path) -> None:
    later = verdicts_of(halved, HALVING)
    assert begin(later) == ["train.micro_batch_size 8 ran out of memory on such workers before: 4 is taken"]
    assert later.news() == [{"event": "micro_batch_halved", "failed": 8, "taken": 4, "remembered": True}]
    assert later.config.train.micro_batch_size == 4
    assert (begin(later), later.news()) == ([], [])  # told once


@pytest.mark.parametrize(
    ("run", "device", "workers"),
    [
        (HALVING, "H200", 2),
        (HALVING, "H100", 4),
        (replace(HALVING, zero=ZeroConfig(stage=3)), "H100", 2),
        (config(micro_batch=6, on_oom="halve_micro_batch"), "H100", 2),
        (config(), "H100", 2),
    ],
    ids=["device", "workers", "stage", "configured", "not wanted"],
)
def test_micro_batch_is_the_users_when_memory_ran_out_on_another_footing(
    run: RunConfig, device: str, workers: int, halved: Path
) -> None:
    later = verdicts_of(halved, run, device=device)
    assert (begin(later, workers), later.news()) == ([], [])
    assert later.config == run


def test_micro_batches_of_two_footings_are_kept_beside_each_other(halved: Path) -> None:
    judge = verdicts_of(halved, HALVING)
    begin(judge, 4)
    judge.judge(case("out_of_memory"), SEATS)
    begin(judge, 4)
    kept = json.loads((halved / "run.json").read_bytes())[MICRO_BATCHES]
    assert [(each["footing"]["world_size"], each["failed"], each["taken"]) for each in kept] == [(2, 8, 4), (4, 8, 4)]


def test_group_begins_when_the_storage_does_not_take_the_micro_batch(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge = verdicts_of(directory, HALVING)
    begin(judge)
    judge.judge(case("out_of_memory"), SEATS)
    with monkeypatch.context() as broken:
        broken.setattr(RunDirectory, "update", _fail)
        begin(judge)
    assert "No space left" in caplog.text
    assert judge.config.train.micro_batch_size == 4
    begin(judge)  # kept as soon as the storage takes it
    assert verdicts_of(directory, HALVING)._shortages == judge._shortages


def _fail(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_elastic_run_starts_workers_anew_when_nodes_changed_under_it(directory: Path) -> None:
    judge = verdicts_of(directory, replace(config(), resources=ResourcesConfig(workers=(1, 4))))
    judge.judge(case("lost_worker", "f1"), SEATS)
    judge.judge(case("lost_worker", "f2"), SEATS, nodes_changed=True)
    assert judge.by_number == {"f1": "retry", "f2": "refit"}


def test_death_of_the_controller_counts_as_a_lost_worker(directory: Path) -> None:
    judge = verdicts_of(directory, config(max_lost_workers=1))
    assert judge.controller_lost() == {
        "kind": "lost_worker",
        "causes": {"controller": "Ray Train's controller died"},
    }
    assert judge.given_up is None
    judge.controller_lost()
    assert judge.given_up is not None
