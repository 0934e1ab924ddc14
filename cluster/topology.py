"""Where one process stands among the others, and what it runs on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Place of one rank: global rank, rank on its node, node, and the device and threads it computes with."""

    rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    threads: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes the run's record."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What bit-equality depends on besides the plan: recorded in every manifest and compared at resume.

    A field that older manifests lack has a default, which says what was done before there was the field.
    """

    world_size: int
    zero_stage: int | None
    micro_batch_size: int
    precision: Precision
    threads: int
    device: str
    attention: str
    experts: str | None = None
    """None where the model has none."""
    compiled: bool = False
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def differences(self, other: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Fields whose values differ from those of another layout's JSON form: {field: [other, this]}."""
        known = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        theirs = {**known, **other}
        return {key: [theirs.get(key), value] for key, value in self.as_dict().items() if theirs.get(key) != value}


def set_arithmetic(topology: Topology, *, deterministic: bool) -> None:
    """Fix what the bits of a result depend on: the number of threads and, where asked for, the kernels."""
    torch.set_num_threads(topology.threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def device_name(device: str) -> str:
    """Marketing name of the GPU, or the processor's architecture."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.machine()


def resolve_precision(asked: str, device: str) -> tuple[Precision, str]:
    """Turn `auto` into a precision.

    Returns:
        The precision and the reason for it, for the log.
    """
    if asked == "fp32":
        return "fp32", "asked for by name"
    if asked == "bf16":
        return "bf16", "asked for by name"
    if device.startswith("cuda") and torch.cuda.is_bf16_supported():
        return "bf16", f"{device_name(device)} computes in bf16"
    return "fp32", f"device {device} gains nothing certain from bf16"
