"""DeepSpeed at every stage against plain torch, on real gloo ranks: losses, gradients, and state moved between them."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from engine_matrix import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    MATRIX,
    MODEL,
    OPTIONS,
    SAVED_AFTER,
    STEPS,
    Case,
    Curve,
    Precision,
    curves,
    load_all,
)
from gloo import run_ranks

from cluster.topology import Topology
from llm.accounting import count_parameters

SAVED_ON = 2
FEW_STEPS = 6
"""Enough to see a wrong state, gradient or decay, where the 20 steps of the law are run on other ranks."""
MOVED = [case for case in MATRIX if str(case) in ("zero1-fp32", "zero2-fp32", "zero3-fp32", "zero3-bf16")]
"""Loaded by three ranks; the bf16 one reads what stages 1 and 3 saved."""
NOT_SAVED = ("zero0-fp32", "zero0-bf16", "zero2-bf16")


@functools.cache
def reference(precision: Precision) -> Curve:
    case = Case(precision=precision)
    return curves(Topology(), [case])[str(case)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@functools.cache
def curves_on(world_size: int, saved_in: Path | None) -> dict[str, Curve]:
    """Curves of the whole matrix in one launch; on two ranks with all that other tests of two ranks need."""
    if world_size == SAVED_ON:
        return run_ranks(curves_of_two_ranks, world_size, saved_in)[0]
    return run_ranks(curves, world_size, MATRIX, FEW_STEPS if world_size == 1 else STEPS)[0]


def curves_of_two_ranks(topology: Topology, saved_in: Path) -> dict[str, Curve]:
    kept = [case for case in MATRIX if str(case) not in NOT_SAVED]
    others = [case for case in MATRIX if str(case) in NOT_SAVED]
    whole = SAVED_AFTER + STEPS
    return curves(topology, kept, whole, saved_in) | curves(topology, others) | curves(topology, OPTIONS, FEW_STEPS)


def assert_equal(curve: Curve, case: Case) -> None:
    expected = reference(case.precision)
    assert len(curve.losses) >= FEW_STEPS
    assert curve.loss_difference(expected) <= LOSS_TOLERANCE[case.precision]
    assert curve.gradient_difference(expected) <= GRADIENT_TOLERANCE[case.precision]


@pytest.mark.parametrize(
    "world_size", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_losses_and_gradients_equal_plain_torch(world_size: int, case: Case, saved: Path) -> None:
    assert_equal(curves_on(world_size, saved)[str(case)], case)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_losses_and_gradients_equal_plain_torch_when_an_option_is_set(case: Case, saved: Path) -> None:
    assert_equal(curves_on(SAVED_ON, saved)[str(case)], case)


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_options_leave_the_curve_as_it_is_when_there_are_four_ranks(case: Case) -> None:
    assert_equal(run_options_on_four()[str(case)], case)


@functools.cache
def run_options_on_four() -> dict[str, Curve]:
    return run_ranks(curves, 4, OPTIONS, FEW_STEPS)[0]


def test_state_is_bit_equal_and_curve_goes_on_when_moved_between_topologies(saved: Path) -> None:
    goes_on = {f"{SAVED_ON}-{name}": curve for name, curve in curves_on(SAVED_ON, saved).items()}
    assert_moved(goes_on, MOVED, 3, saved)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_is_bit_equal_when_moved_between_all_topologies(precision: Precision, tmp_path: Path) -> None:
    cases = [case for case in MATRIX if case.precision == precision]
    goes_on = {}
    for world_size in (1, 2, 3):
        found = run_ranks(curves, world_size, cases, SAVED_AFTER + STEPS, tmp_path)[0]
        goes_on |= {f"{world_size}-{name}": curve for name, curve in found.items()}
    for world_size in (1, 2, 3):
        assert_moved(goes_on, cases, world_size, tmp_path)


def assert_moved(goes_on: dict[str, Curve], cases: list[Case], world_size: int, directory: Path) -> None:
    """Load what lies in a directory on `world_size` ranks, and compare it with the run that was never interrupted."""
    ranks = run_ranks(load_all, world_size, cases, directory)
    assert {target for _, target in ranks[0]} == {f"{world_size}-{case}" for case in cases}
    assert {len(loaded.losses) for loaded in ranks[0].values()} == {2, STEPS}
    for (origin, target), loaded in ranks[0].items():
        held = [rank[origin, target] for rank in ranks]
        assert all(part.equal for part in held), f"{origin} -> {target}: state is not bit-equal"
        assert sum(part.elements for part in held) == count_parameters(MODEL).total, f"{origin} -> {target}"
        undisturbed = Curve(goes_on[origin].losses[SAVED_AFTER:], {})
        assert len(undisturbed.losses) == STEPS
        precision = "bf16" if "bf16" in target else "fp32"
        difference = Curve(loaded.losses, {}).loss_difference(undisturbed)
        assert difference <= LOSS_TOLERANCE[precision], f"{origin} -> {target}: losses {difference:.1e} apart"
