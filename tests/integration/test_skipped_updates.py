"""Steps that must leave no trace: gradients dropped, updates refused, and what an engine did before it was loaded."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import pytest
import torch
from engine_matrix import MATRIX, MODEL, OPTIONS, SEED, Case, build, global_batch, train_steps
from gloo import run_ranks
from load_matrix import MUON, with_optimizer

from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import Engine, FragmentState
from cluster.topology import Topology

ANOTHER_STEP = 99
RATE = 1e-2


@dataclass(frozen=True)
class Trace:
    """What a disturbance left behind in one rank."""

    state_kept: bool
    """Masters and optimizer states right after it are bit for bit those before."""
    training_kept: bool
    """Loss and state after the next step are bit for bit those of an engine that was not disturbed."""
    norm: float | None = None


def discard_whole_step(engine: Engine, topology: Topology) -> None:
    batches, weight = global_batch(ANOTHER_STEP, topology)
    engine.begin_step(len(batches))
    for batch in batches:
        engine.accumulate(batch, torch.tensor(1.0 / weight))
    engine.discard()


def discard_first_micro_batch(engine: Engine, topology: Topology) -> None:
    batches, weight = global_batch(ANOTHER_STEP, topology)
    engine.begin_step(len(batches))
    engine.accumulate(batches[0], torch.tensor(1.0 / weight))
    engine.discard()


def discard_nan(engine: Engine, topology: Topology) -> None:
    batches, _ = global_batch(ANOTHER_STEP, topology)
    engine.begin_step(len(batches))
    for batch in batches:
        engine.accumulate(batch, torch.tensor(math.nan))
    engine.discard()


def update_with(value: float, engine: Engine, topology: Topology) -> float:
    """A step with a micro-batch whose gradients are not finite, the first of the last rank."""
    batches, weight = global_batch(ANOTHER_STEP, topology)
    engine.begin_step(len(batches))
    for index, batch in enumerate(batches):
        injected = topology.rank == topology.world_size - 1 and index == 0
        engine.accumulate(batch, torch.tensor(value if injected else 1.0 / weight))
    return engine.update(RATE).item()


LOADED_AGAIN = "loaded_again"
DISTURBANCES = {
    "discard_whole_step": discard_whole_step,
    "discard_first_micro_batch": discard_first_micro_batch,
    "discard_nan": discard_nan,
    "update_nan": functools.partial(update_with, math.nan),
    "update_inf": functools.partial(update_with, math.inf),
}


def traces(topology: Topology, cases: list[Case]) -> dict[tuple[str, str], Trace]:
    """Disturb an engine after each step; a second engine makes the same steps without."""
    found = {}
    for case in cases:
        undisturbed, disturbed = build(case, topology), build(case, topology)
        for engine in (undisturbed, disturbed):
            engine.load(InitialState(MODEL, SEED))
        train_steps(disturbed, topology, range(ANOTHER_STEP, ANOTHER_STEP + 2))
        disturbed.load(InitialState(MODEL, SEED))
        kept = equal(undisturbed.snapshot(), disturbed.snapshot())
        losses = [train_steps(engine, topology, range(2, 4)).losses for engine in (undisturbed, disturbed)]
        found[str(case), LOADED_AGAIN] = Trace(kept, losses[0] == losses[1])
        for step, (name, disturb) in enumerate(DISTURBANCES.items(), start=4):
            before = disturbed.snapshot()
            norm = disturb(disturbed, topology)
            after = disturbed.snapshot()
            steps = range(step, step + 1)
            losses = [train_steps(engine, topology, steps).losses for engine in (undisturbed, disturbed)]
            same = losses[0] == losses[1] and equal(undisturbed.snapshot(), disturbed.snapshot())
            found[str(case), name] = Trace(equal(before, after), same, norm)
    return found


def equal(some: list[FragmentState], others: list[FragmentState]) -> bool:
    return all(
        one.fragment == other.fragment
        and one.scalars == other.scalars
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
        for one, other in zip(some, others, strict=True)
    )


@functools.cache
def on_ranks(launch: str) -> list[dict[tuple[str, str], Trace]]:
    world_size, cases = LAUNCHES[launch]
    return [traces(Topology(), cases)] if launch == "torch" else run_ranks(traces, world_size, cases)


FEW = [
    case
    for case in [*MATRIX, *OPTIONS]
    if str(case) in ("zero0-fp32", "zero1-bf16", "zero2-bf16", "zero3-fp32-small-buckets")
]
"""Every stage, each with another way to keep gradients; the last keeps some parameters whole between steps."""
ALL = [*MATRIX, FEW[-1], *(with_optimizer(case, MUON) for case in FEW)]
LAUNCHES = {
    "torch": (1, [Case(precision="fp32"), Case(precision="bf16")]),
    "few on 2": (2, FEW),
    "all on 1": (1, ALL),
    "all on 2": (2, [*ALL, *(case for case in OPTIONS if case.note == "offload")]),
    "all on 3": (3, ALL),
}
"""Number of ranks and engines by name; plain torch needs no other process."""
EACH_LAUNCH = [pytest.param(name, marks=pytest.mark.slow if name.startswith("all") else []) for name in LAUNCHES]


@pytest.mark.parametrize("disturbance", [name for name in DISTURBANCES if name.startswith("discard")])
@pytest.mark.parametrize("launch", EACH_LAUNCH)
def test_training_is_bit_equal_when_gradients_were_discarded(launch: str, disturbance: str) -> None:
    assert_no_trace(launch, disturbance)


@pytest.mark.parametrize("disturbance", [name for name in DISTURBANCES if name.startswith("update")])
@pytest.mark.parametrize("launch", EACH_LAUNCH)
def test_state_is_untouched_when_a_gradient_is_not_finite(launch: str, disturbance: str) -> None:
    for trace in assert_no_trace(launch, disturbance):
        assert trace.norm is not None
        assert not math.isfinite(trace.norm)


@pytest.mark.parametrize("launch", EACH_LAUNCH)
def test_training_is_bit_equal_when_state_is_loaded_into_an_engine_that_was_trained(launch: str) -> None:
    assert_no_trace(launch, LOADED_AGAIN)


def assert_no_trace(launch: str, disturbance: str) -> list[Trace]:
    found = []
    for rank in on_ranks(launch):
        assert {case for case, _ in rank} == {str(case) for case in LAUNCHES[launch][1]}
        for (case, name), trace in rank.items():
            if name == disturbance:
                assert trace.state_kept, f"{case}: the state was changed"
                assert trace.training_kept, f"{case}: the training after it differs"
                found.append(trace)
    return found
