"""The driver as judge, over a run directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config import FaultsConfig, RunConfig, TrainConfig
from cluster.failure import FailureKind, WorkerFailure
from cluster.inquest import Case, Seat
from cluster.run_directory import RunDirectory
from cluster.verdicts import MICRO_BATCH, Verdicts
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


def verdicts_of(directory: Path, run: RunConfig, failures: list[WorkerFailure] | None = None) -> Verdicts:
    return Verdicts(run, False, directory, [] if failures is None else failures)


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
    judge.begin()
    assert judge.lost_nodes == set()


def test_half_the_micro_batch_is_taken_for_the_life_of_the_run(directory: Path) -> None:
    run = config(on_oom="halve_micro_batch")
    judge = verdicts_of(directory, run)
    judge.judge(case("out_of_memory"), SEATS)
    assert judge.decided == "refit"
    assert judge.news() == [{"event": "micro_batch_halved", "step": 7, "failed": 8, "taken": 4}]
    assert judge.config.train == replace(run.train, micro_batch_size=4)
    judge.begin()
    assert json.loads((directory / "run.json").read_bytes())[MICRO_BATCH] == {"failed": 8, "taken": 4}
    said: list[str] = []
    later = verdicts_of(directory, run)
    later.say_what_is_remembered(said.append)
    assert later.config.train.micro_batch_size == 4
    assert said == ["train.micro_batch_size 8 ran out of memory in this run before: 4 is taken"]


def test_smaller_micro_batch_of_the_user_is_taken_when_a_larger_one_failed(directory: Path) -> None:
    RunDirectory(directory).update({MICRO_BATCH: {"failed": 8, "taken": 4}})
    said: list[str] = []
    judge = verdicts_of(directory, config(micro_batch=2))
    judge.say_what_is_remembered(said.append)
    assert (judge.config.train.micro_batch_size, said) == (2, [])


def test_death_of_the_controller_counts_as_a_lost_worker(directory: Path) -> None:
    judge = verdicts_of(directory, config(max_lost_workers=1))
    assert judge.controller_lost() == {
        "kind": "lost_worker",
        "causes": {"controller": "Ray Train's controller died"},
    }
    assert judge.given_up is None
    judge.controller_lost()
    assert judge.given_up is not None
