"""ZeRO options: used or refused, and never anything between."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from cluster.config import ZeroConfig
from cluster.engines.zero_options import check_zero, check_zero_precision, zero_settings
from cluster.errors import RunRefusedError


@pytest.mark.parametrize(
    ("stage", "option"),
    [
        (0, {"offload_optimizer": "cpu"}),
        (2, {"offload_parameters": "cpu"}),
        (0, {"reduce_bucket_elements": 10}),
        (0, {"overlap_communication": False}),
        (3, {"allgather_bucket_elements": 10}),
        (2, {"prefetch_bucket_elements": 0}),
        (1, {"parameter_persistence_threshold_elements": 0}),
        (2, {"hpz_partition_size": 2}),
    ],
)
def test_option_is_refused_when_the_stage_has_no_use_for_it(stage: Any, option: dict[str, Any]) -> None:
    (name, value), *_ = option.items()
    with pytest.raises(
        ValueError, match=rf"^{name} is {value!r} at zero\.stage {stage}, .*Leave {name} out, or change"
    ):
        ZeroConfig(stage=stage, **option)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reduce_bucket_elements", 0),
        ("prefetch_bucket_elements", -1),
        ("parameter_persistence_threshold_elements", -1),
        ("hpz_partition_size", 1),
    ],
)
def test_option_is_refused_when_it_is_too_small(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value}, and must be at least {value + 1}, or null"):
        ZeroConfig(stage=3, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option",
    [
        {"offload_optimizer": "cpu"},
        {"offload_parameters": "cpu"},
        {"overlap_communication": True},
        {"hpz_partition_size": 2},
    ],
)
def test_option_is_refused_when_the_workers_have_no_gpu(option: dict[str, Any]) -> None:
    zero = ZeroConfig(stage=3, **option)
    (name, value), *_ = option.items()
    with pytest.raises(RunRefusedError) as refusal:
        check_zero(zero, device="cpu", workers=4)
    assert str(refusal.value).startswith(f"zero.{name} is {value!r} and the workers compute on CPUs: ")
    assert "resources.gpus_per_worker=1" in str(refusal.value)
    check_zero(zero, device="cuda:0", workers=4)


@pytest.mark.parametrize("option", [{}, {"overlap_communication": False}, {"prefetch_bucket_elements": 0}])
def test_option_is_taken_when_a_cpu_can_serve_it(option: dict[str, Any]) -> None:
    check_zero(ZeroConfig(stage=3, **option), device="cpu", workers=3)


@pytest.mark.parametrize(("workers", "remedy"), [(6, "one of 2, 3, 6,"), (2, "one of 2,"), (1, "there is one worker")])
def test_hpz_is_refused_when_it_does_not_divide_the_workers(workers: int, remedy: str) -> None:
    with pytest.raises(RunRefusedError, match=remedy):
        check_zero(ZeroConfig(stage=3, hpz_partition_size=4), device="cuda", workers=workers)


@pytest.mark.parametrize("option", [{"reduce_bucket_elements": 10}, {"overlap_communication": False}])
def test_option_is_refused_when_stage_1_in_bf16_would_not_read_it(option: dict[str, Any]) -> None:
    zero = ZeroConfig(stage=1, **option)
    with pytest.raises(RunRefusedError, match=rf"zero\.{next(iter(option))} is .* at zero\.stage 1 in bf16"):
        check_zero_precision(zero, "bf16")
    check_zero_precision(zero, "fp32")
    check_zero_precision(replace(zero, stage=2), "bf16")
    check_zero_precision(replace(zero, offload_optimizer="cpu"), "bf16")


def test_settings_name_the_stage_alone_when_nothing_is_asked_for() -> None:
    assert zero_settings(ZeroConfig(stage=2)) == {"stage": 2}


def test_settings_pass_every_option_on_when_it_is_asked_for() -> None:
    asked = ZeroConfig(
        stage=3,
        offload_optimizer="cpu",
        offload_parameters="cpu",
        reduce_bucket_elements=1,
        prefetch_bucket_elements=0,
        parameter_persistence_threshold_elements=0,
        overlap_communication=False,
        hpz_partition_size=2,
    )
    assert zero_settings(asked) == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
        "reduce_bucket_size": 1,
        "stage3_prefetch_bucket_size": 0,
        "stage3_param_persistence_threshold": 0,
        "overlap_comm": False,
        "zero_hpz_partition_size": 2,
    }
    assert zero_settings(ZeroConfig(stage=1, allgather_bucket_elements=5)) == {"stage": 1, "allgather_bucket_size": 5}


def test_options_are_checked_without_torch() -> None:
    code = "import sys, cluster.engines.zero_options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
