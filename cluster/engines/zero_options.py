"""ZeRO options: what a device and a precision can serve, and their names in DeepSpeed. Imports no torch.

`check_zero` needs only what the driver knows before a worker starts, `check_zero_precision` what a worker resolves.
Neither changes an option: what was asked for is used or refused.
"""

from __future__ import annotations

from typing import Any, Literal

from cluster.config import ZeroConfig
from cluster.errors import RunRefusedError


def check_zero(zero: ZeroConfig, *, device: str, workers: int) -> None:
    """Refuse options that the workers cannot serve.

    Args:
        zero: What was asked for.
        device: `cpu`, `cuda` or `cuda:N`, what a worker computes on.
        workers: Number of ranks.

    Raises:
        RunRefusedError: An option needs GPUs, or a group of workers that cannot be formed.
    """
    if device == "cpu":
        for name, value, asked, reason in (
            ("offload_optimizer", zero.offload_optimizer, zero.offload_optimizer == "cpu", _IN_HOST_MEMORY),
            ("offload_parameters", zero.offload_parameters, zero.offload_parameters == "cpu", _IN_HOST_MEMORY),
            ("overlap_communication", zero.overlap_communication, zero.overlap_communication is True, _NO_STREAMS),
            ("hpz_partition_size", zero.hpz_partition_size, zero.hpz_partition_size is not None, _NO_FAST_LINKS),
        ):
            if asked:
                raise RunRefusedError(
                    f"zero.{name} is {value!r} and the workers compute on CPUs: {reason}. "
                    f"Leave zero.{name} out, or give each worker a GPU (resources.gpus_per_worker=1)."
                )
    group = zero.hpz_partition_size
    if group is not None and workers % group:
        raise RunRefusedError(
            f"zero.hpz_partition_size is {group} and resources.workers {workers}: the workers fall into whole groups "
            f"that each share a copy of the parameters, so the size must divide them. Set it to one of "
            f"{_divisors(workers)}, or leave it out."
        )


def check_zero_precision(zero: ZeroConfig, precision: Literal["fp32", "bf16"]) -> None:
    """Refuse options that DeepSpeed would not read at a precision.

    Args:
        zero: What was asked for.
        precision: Resolved precision of forward and backward.

    Raises:
        RunRefusedError: An option and the precision do not go together.
    """
    if precision == "fp32" or zero.stage != 1 or zero.offload_optimizer == "cpu":
        return
    for name in ("reduce_bucket_elements", "overlap_communication"):
        value = getattr(zero, name)
        if value is not None:
            raise RunRefusedError(
                f"zero.{name} is {value!r} at zero.stage 1 in bf16: DeepSpeed reduces the gradients there after the "
                f"backward pass, in a bucket of its own size, and never reads it. Leave zero.{name} out, or set "
                "zero.stage=2 or train.precision=fp32."
            )


def zero_settings(zero: ZeroConfig) -> dict[str, Any]:
    """The `zero_optimization` section of DeepSpeed's configuration; what is not asked for keeps DeepSpeed's default."""
    asked: dict[str, Any] = {
        "reduce_bucket_size": zero.reduce_bucket_elements,
        "allgather_bucket_size": zero.allgather_bucket_elements,
        "stage3_prefetch_bucket_size": zero.prefetch_bucket_elements,
        "stage3_param_persistence_threshold": zero.parameter_persistence_threshold_elements,
        "overlap_comm": zero.overlap_communication,
        "zero_hpz_partition_size": zero.hpz_partition_size,
        "offload_optimizer": {"device": "cpu"} if zero.offload_optimizer == "cpu" else None,
        "offload_param": {"device": "cpu"} if zero.offload_parameters == "cpu" else None,
    }
    return {"stage": zero.stage, **{name: value for name, value in asked.items() if value is not None}}


_IN_HOST_MEMORY = "what would be moved to the host's memory is there already"
_NO_STREAMS = "a CPU computes and communicates one after the other"
_NO_FAST_LINKS = "a second copy pays where GPUs of one node are linked faster than nodes are"


def _divisors(workers: int) -> str:
    return ", ".join(str(size) for size in range(2, workers + 1) if workers % size == 0) or "none (there is one worker)"
