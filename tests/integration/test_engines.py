"""DeepSpeed at every stage against plain torch, on real gloo ranks: losses, gradients, and state moved between them."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
from engine_matrix import (
    COMPILED,
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    MATRIX,
    MODELS,
    OPTIONS,
    SAVED_AFTER,
    STEPS,
    Case,
    Curve,
    build,
    changing_curves,
    curves,
)
from gloo import run_ranks
from load_matrix import LOADED, MUON, SGD, check_all, load_all, with_optimizer

from cluster.config import ZeroConfig
from cluster.topology import Topology

WORLDS = (1, 2, 3, 4)
SAVED_ON = 2
CHANGING_STEPS = 7
"""Twice round the numbers of sequences, and one more whose loss shows the last update."""
FEW_STEPS = 6
"""Enough to see a wrong state, gradient or decay, where the 20 steps of the law are run on other ranks."""
MOVED = [case for case in MATRIX if str(case) in ("zero1-fp32", "zero2-fp32", "zero3-fp32", "zero3-bf16")]
"""Loaded by three ranks: what the stages saved in either precision, those without NOT_SAVED."""
NOT_SAVED = ("zero0-fp32", "zero0-bf16", "zero2-bf16")
OPTIMIZERS = [with_optimizer(case, optimizer) for optimizer in (MUON, SGD) for case in MATRIX]
FEW_OPTIMIZERS = [case for case in OPTIMIZERS if str(case) in ("zero1-bf16-muon", "zero3-fp32-muon", "zero2-fp32-sgd")]


@functools.cache
def reference(plain: Case) -> Curve:
    return curves(Topology(), [plain])[str(plain)]


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
    few = [*FEW_OPTIMIZERS, *MODELS, *OPTIONS]
    return curves(topology, kept, whole, saved_in) | curves(topology, others) | curves(topology, few, FEW_STEPS)


def assert_equal(curve: Curve, case: Case) -> None:
    # in plain torch, with nothing recomputed or compiled
    expected = reference(replace(case, zero=None, activation_checkpointing="off", compiled=False, note=""))
    assert len(curve.losses) >= FEW_STEPS
    assert curve.loss_difference(expected) <= LOSS_TOLERANCE[case.precision]
    assert curve.gradient_difference(expected) <= GRADIENT_TOLERANCE[case.precision]


@pytest.mark.parametrize(
    "world_size", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_losses_and_gradients_equal_plain_torch(world_size: int, case: Case, saved: Path) -> None:
    assert_equal(curves_on(world_size, saved)[str(case)], case)


STAGE_3 = [case for case in MATRIX if case.zero is not None and case.zero.stage == 3]


def curves_by_fp16(topology: Topology) -> dict[tuple[str, bool], Curve]:
    """Stage 3 where DeepSpeed is told that the device has fp16, and where it is told that it has none."""
    from deepspeed.accelerator import get_accelerator

    found = {}
    for has_fp16 in (False, True):
        get_accelerator().is_fp16_supported = lambda answer=has_fp16: answer
        found |= {(name, has_fp16): curve for name, curve in curves(topology, STAGE_3, FEW_STEPS).items()}
    return found


@functools.cache
def curves_alone_by_fp16() -> dict[tuple[str, bool], Curve]:
    return run_ranks(curves_by_fp16, 1)[0]


@pytest.mark.parametrize("has_fp16", [False, True])
@pytest.mark.parametrize("case", STAGE_3, ids=str)
def test_losses_and_gradients_equal_plain_torch_whether_the_device_has_fp16(case: Case, has_fp16: bool) -> None:
    assert_equal(curves_alone_by_fp16()[str(case), has_fp16], case)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_losses_and_gradients_equal_plain_torch_when_an_option_is_set(case: Case, saved: Path) -> None:
    assert_equal(curves_on(SAVED_ON, saved)[str(case)], case)


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_losses_and_gradients_equal_plain_torch_when_the_model_is_another(case: Case, saved: Path) -> None:
    assert_equal(curves_on(SAVED_ON, saved)[str(case)], case)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_losses_and_gradients_equal_plain_torch_when_compiled(case: Case) -> None:
    assert_equal(run_compiled()[str(case)], case)


@functools.cache
def run_compiled() -> dict[str, Curve]:
    return run_ranks(curves, 2, COMPILED, FEW_STEPS)[0]


@pytest.mark.parametrize("case", FEW_OPTIMIZERS, ids=str)
def test_losses_and_gradients_equal_plain_torch_when_the_optimizer_is_another(case: Case, saved: Path) -> None:
    assert_equal(curves_on(SAVED_ON, saved)[str(case)], case)


CHANGING = [
    *(case for case in MATRIX if str(case) != "zero0-bf16"),
    *(case for case in OPTIONS if case.note == "offload"),
]
"""All but the one that differs from plain torch by more than rounding: its parameters are fp32."""


@functools.cache
def changing_on(world_size: int) -> dict[str, Curve]:
    return run_ranks(changing_curves, world_size, CHANGING, CHANGING_STEPS)[0]


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("case", CHANGING, ids=str)
def test_losses_equal_plain_torch_when_steps_have_other_numbers_of_micro_batches(world_size: int, case: Case) -> None:
    plain = Case(precision=case.precision)
    expected = changing_curves(Topology(), [plain], CHANGING_STEPS)[str(plain)]
    assert changing_on(world_size)[str(case)].loss_difference(expected) <= LOSS_TOLERANCE[case.precision]


def dtypes_without_fp16(topology: Topology, cases: list[Case]) -> list[set[str]]:
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: False
    modules = [build(case, topology)._engine.module for case in cases]  # type: ignore[attr-defined]
    return [{str(parameter.ds_tensor.dtype) for parameter in module.parameters()} for module in modules]


def test_stage_3_keeps_its_precision_when_the_device_has_no_fp16() -> None:
    cases = [Case(zero=ZeroConfig(stage=3), precision=precision) for precision in ("fp32", "bf16")]
    assert run_ranks(dtypes_without_fp16, 1, cases)[0] == [{"torch.float32"}, {"torch.bfloat16"}]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
def test_optimizers_equal_plain_torch_when_partitioned(world_size: int, case: Case) -> None:
    assert_equal(run_optimizers_on(world_size)[str(case)], case)


@functools.cache
def run_optimizers_on(world_size: int) -> dict[str, Curve]:
    return run_ranks(curves, world_size, OPTIMIZERS)[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_options_leave_the_curve_as_it_is_when_there_are_four_ranks(case: Case) -> None:
    assert_equal(run_options_on_four()[str(case)], case)


@functools.cache
def run_options_on_four() -> dict[str, Curve]:
    return run_ranks(curves, 4, OPTIONS, FEW_STEPS)[0]


def test_state_is_bit_equal_and_curve_goes_on_when_moved_between_topologies(saved: Path) -> None:
    found = {f"{SAVED_ON}-{name}": curve for name, curve in curves_on(SAVED_ON, saved).items()}
    assert_moved({path.name: found[path.name] for path in saved.iterdir()}, MOVED, 3, saved)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_state_is_bit_equal_when_moved_between_all_topologies(tmp_path: Path) -> None:
    """One launch for each number of workers that saves, and one for each that loads; `-s` shows the table."""
    goes_on = {}
    for world_size in WORLDS:
        found = run_ranks(curves, world_size, LOADED, SAVED_AFTER + STEPS, tmp_path)[0]
        goes_on |= {f"{world_size}-{name}": curve for name, curve in found.items()}
    print("\n| target | checkpoints, bit-equal | of its precision | largest loss difference |\n|---|---:|---:|---:|")
    for world_size in WORLDS:
        for target, differences in assert_moved(goes_on, LOADED, world_size, tmp_path).items():
            compared = [difference for difference in differences if difference is not None]
            print(f"| {target} | {len(differences)} | {len(compared)} | {max(compared):.1e} |", flush=True)


def assert_moved(
    goes_on: dict[str, Curve], cases: list[Case], world_size: int, directory: Path
) -> dict[str, list[float | None]]:
    """Load what lies in a directory on `world_size` ranks; by target, how far losses are from undisturbed ones."""
    return check_all(goes_on, cases, run_ranks(load_all, world_size, cases, directory))
