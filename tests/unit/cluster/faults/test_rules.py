"""What failures mean and what follows from them, over plain values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cluster.faults.config import FaultsConfig
from cluster.faults.failure import FailureKind, WorkerFailure
from cluster.faults.rules import (
    Ending,
    FailureTally,
    Ruling,
    Terms,
    causes_by_rank,
    classify,
    follows_another,
    kind_of_error,
    root_cause,
    rule,
)

RAY_SILENT = (
    "ActorDiedError: The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
    "detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) "
    "the process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called"
)
RAY_NODE_DIED = "ActorDiedError: The actor died because its node has died. Node Id: 252d"
RAY_MEMORY = "OutOfMemoryError: Task was killed due to the node running low on memory."
GLOO = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:9138"
)
NCCL = "DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited or there was a network error"
TERMS = Terms(micro_batch_size=8, elastic=False)


def failure(kind: FailureKind = "error", **changes: Any) -> WorkerFailure:
    base = WorkerFailure(
        rank=1,
        node="10.0.0.7",
        pid=42,
        kind=kind,
        step=57,
        error="ValueError: bad row 12 at 0x7f01",
        traceback="",
        time_unix_seconds=100.0,
    )
    return replace(base, **changes)


def ending(text: str, *, died: bool = True, preempted: bool = False) -> Ending:
    return Ending(rank=0, error=text.splitlines()[-1], text=text, died=died, preempted=preempted)


def rulings(causes: list[WorkerFailure], faults: FaultsConfig, terms: Terms = TERMS) -> list[Ruling]:
    tally, found = FailureTally(), []
    for cause in causes:
        ruling, tally = rule(tally, faults, terms, cause)
        found.append(ruling)
    return found


@pytest.mark.parametrize(
    ("text", "node_alive", "node_draining", "kind"),
    [
        (RAY_SILENT, True, False, "lost_worker"),  # Ray's guess about the kernel's OOM killer is no evidence
        (RAY_SILENT, False, False, "lost_node"),  # before Ray itself has noticed
        (RAY_NODE_DIED, True, False, "lost_node"),
        (RAY_NODE_DIED, False, True, "preemption"),
        (RAY_MEMORY, True, False, "out_of_memory"),
        ("", True, False, "lost_worker"),
    ],
)
def test_silent_end_is_classified_by_ray_and_the_node(
    text: str, node_alive: bool, node_draining: bool, kind: FailureKind
) -> None:
    seen = Ending(rank=0, error=text, text=text, died=True)
    assert classify(seen, node_alive=node_alive, node_draining=node_draining) == kind


def test_silent_end_is_a_preemption_when_ray_says_so() -> None:
    assert classify(ending(RAY_NODE_DIED, preempted=True), node_alive=False, node_draining=False) == "preemption"


def test_error_stays_an_error_when_its_node_is_taken_back() -> None:
    assert classify(ending("ValueError: x", died=False), node_alive=True, node_draining=True) == "error"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (MemoryError(), "out_of_memory"),
        (OSError(12, "Cannot allocate memory"), "out_of_memory"),
        (ValueError("micro_batch_after_out_of_memory"), "error"),
        (KeyError("x"), "error"),
    ],
)
def test_error_of_a_worker_is_told_apart_from_a_lack_of_memory(error: Exception, kind: FailureKind) -> None:
    assert kind_of_error(error) == kind


def test_error_is_a_lack_of_memory_when_that_led_to_it() -> None:
    error = RuntimeError("the step failed")
    error.__cause__ = MemoryError()
    assert kind_of_error(error) == "out_of_memory"


@pytest.mark.parametrize(
    ("text", "follows"), [(GLOO, True), (NCCL, True), ("ValueError: bad row", False), ("KeyError: 'peers'", False)]
)
def test_error_that_only_says_that_another_rank_is_gone_is_recognised(text: str, follows: bool) -> None:
    assert follows_another(failure(error=text)) is follows


def test_root_cause_is_the_silent_death_when_others_spoke_first() -> None:
    dead = failure("lost_worker", rank=3, time_unix_seconds=105.0, error="its process ended")
    others = [failure(rank=0, error=GLOO, time_unix_seconds=100.0), failure(rank=1, error=NCCL)]
    assert root_cause([*others, dead]) is dead


def test_root_cause_is_the_real_error_when_a_connection_broke_before_it_was_told() -> None:
    real = failure(rank=2, time_unix_seconds=101.0)
    assert root_cause([failure(rank=0, error=GLOO, time_unix_seconds=100.0), real]) is real


def test_root_cause_is_the_earliest_of_equals() -> None:
    early = failure(rank=5, time_unix_seconds=99.0)
    assert root_cause([failure(rank=0), early]) is early
    assert next(iter(causes_by_rank([failure(rank=0), early]))) == "5"


@pytest.mark.parametrize(
    ("kind", "budget"),
    [
        ("preemption", "max_preemptions"),
        ("lost_node", "max_lost_nodes"),
        ("lost_worker", "max_lost_workers"),
        ("out_of_memory", "max_out_of_memory"),
        ("error", "max_errors"),
    ],
)
def test_budget_of_a_kind_is_spent_by_that_kind_alone(kind: FailureKind, budget: str) -> None:
    faults = FaultsConfig(**{budget: 2})
    others: list[FailureKind] = ["preemption", "lost_node", "lost_worker", "out_of_memory", "error"]
    noise = [failure(other, step=step) for step, other in enumerate(others) if other != kind]
    spent = [failure(kind, step=step) for step in (11, 12, 13)]
    decisions = [each.decision for each in rulings([*noise, *spent], faults)]
    assert decisions == ["retry"] * 6 + ["end"]


def test_budget_without_limit_is_never_spent() -> None:
    many = [failure("preemption", step=None) for _ in range(50)]
    assert {each.decision for each in rulings(many, FaultsConfig(max_preemptions=-1))} == {"retry"}


def test_spent_budget_is_told_with_place_and_remedy() -> None:
    (ruling,) = rulings([failure("lost_worker", error="its process ended")], FaultsConfig(max_lost_workers=0))
    assert ruling == Ruling(
        decision="end",
        reason="workers ended by lost worker once without a new checkpoint, and faults.max_lost_workers is 0.\n"
        "rank 1 on node 10.0.0.7, step 57: its process ended\n"
        "Checkpoints up to the last saved one are whole; the same command continues from there.",
    )


def test_same_error_at_the_same_step_ends_the_run_when_only_its_numbers_differ() -> None:
    again = failure(error="ValueError: bad row 99 at 0x55aa", pid=77, rank=0)
    first, between, second = rulings([failure(), failure("lost_worker"), again], FaultsConfig(max_errors=-1))
    assert (first.decision, between.decision, second.decision) == ("retry", "retry", "end")
    assert second.reason.startswith("step 57 failed twice with the same error")
    assert again.error in second.reason


@pytest.mark.parametrize(
    "again",
    [
        failure(step=58),
        failure(error="KeyError: 'x'"),
        failure("lost_worker"),
        failure(error=GLOO),
    ],
)
def test_run_goes_on_when_the_second_failure_is_another_one(again: WorkerFailure) -> None:
    assert [each.decision for each in rulings([failure(), again], FaultsConfig())] == ["retry", "retry"]


@pytest.mark.parametrize("cause", [failure(step=None), failure("lost_worker"), failure(error=GLOO)])
def test_run_goes_on_when_what_repeats_has_causes_outside_the_program(cause: WorkerFailure) -> None:
    assert [each.decision for each in rulings([cause, cause], FaultsConfig())] == ["retry", "retry"]


def test_lack_of_memory_ends_the_run_with_the_micro_batch_to_try() -> None:
    causes = [failure("out_of_memory", step=step) for step in (3, 4)]
    first, second = rulings(causes, FaultsConfig())
    assert first.decision == "retry"
    assert "faults.max_out_of_memory is 1" in second.reason
    assert "train.micro_batch_size=4 needs less memory" in second.reason


def test_lack_of_memory_at_a_micro_batch_of_one_names_other_remedies() -> None:
    faults = FaultsConfig(max_out_of_memory=0, on_oom="halve_micro_batch")
    (ruling,) = rulings([failure("out_of_memory")], faults, Terms(micro_batch_size=1, elastic=False))
    assert ruling.decision == "end"
    assert "activation_checkpointing=full" in ruling.reason


@pytest.mark.parametrize(("size", "smaller"), [(8, 4), (3, 1), (2, 1)])
def test_lack_of_memory_halves_the_micro_batch_when_asked_to(size: int, smaller: int) -> None:
    faults = FaultsConfig(max_out_of_memory=0, on_oom="halve_micro_batch")
    (ruling,) = rulings([failure("out_of_memory")], faults, Terms(micro_batch_size=size, elastic=False))
    assert ruling == Ruling(decision="refit", micro_batch_size=smaller)


@pytest.mark.parametrize(
    ("kind", "elastic", "decision"),
    [
        ("lost_node", True, "refit"),
        ("preemption", True, "refit"),
        ("lost_worker", True, "retry"),
        ("lost_node", False, "retry"),
        ("hang", False, "refit"),  # without the node that it hung on
    ],
)
def test_workers_start_on_other_terms_when_the_same_ones_would_lack_room(
    kind: FailureKind, elastic: bool, decision: str
) -> None:
    (ruling,) = rulings([failure(kind)], FaultsConfig(), Terms(micro_batch_size=8, elastic=elastic))
    assert ruling.decision == decision


def test_error_that_a_retry_would_meet_again_ends_the_run_in_its_own_words() -> None:
    ruling, _ = rule(FailureTally(), FaultsConfig(), TERMS, failure(), fatal="the disk is full. Make room.")
    assert ruling == Ruling(decision="end", reason="the disk is full. Make room.")


@pytest.mark.parametrize(("budget", "decisions"), [(-1, ["retry"] * 5), (2, ["retry", "retry", "end"])])
def test_budget_alone_decides_when_memory_runs_out_at_one_step_again_and_again(
    budget: int, decisions: list[str]
) -> None:
    causes = [failure("out_of_memory")] * len(decisions)
    assert [each.decision for each in rulings(causes, FaultsConfig(max_out_of_memory=budget))] == decisions


def test_micro_batch_stays_when_memory_ran_out_before_the_first_step() -> None:
    faults = FaultsConfig(max_out_of_memory=1, on_oom="halve_micro_batch")
    first, second = rulings([failure("out_of_memory", step=None)] * 2, faults)
    assert first == Ruling(decision="retry")
    assert second.decision == "end"
    assert "before the first step, whatever the micro-batch" in second.reason


@pytest.mark.parametrize(("elastic", "decision"), [(True, "refit"), (False, "retry")])
def test_workers_start_on_other_terms_when_nodes_came_or_went(elastic: bool, decision: str) -> None:
    terms = Terms(micro_batch_size=8, elastic=elastic, nodes_changed=True)
    (ruling,) = rulings([failure("lost_worker")], FaultsConfig(), terms)
    assert ruling.decision == decision
