"""How many bytes of training state one rank holds, by part, as DeepSpeed 0.19.8 lays it out. Imports no torch.

What lies between the steps and the micro-batches is measured by a test; buffers are read from DeepSpeed's source.
Activations and the loss are counted in `llm`. In formulas P is the number of parameters and W of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cluster.config import ZeroConfig
from llm.accounting import parameter_shapes
from llm.config import ModelConfig, OptimizerConfig
from llm.optimizer import MUON, group_of

if TYPE_CHECKING:
    from cluster.topology import Precision

DEFAULT_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's own, where a bucket's size is null, and of stage 0 always."""
GATHERED_ELEMENTS = 1_000_000_000
"""Parameters that stage 3 leaves whole because they are needed again soon: DeepSpeed's stage3_max_live_parameters and
stage3_max_reuse_distance, which we leave as they are."""
_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """What one rank holds of the training state."""

    parameters: int
    """In the numbers of the forward pass; at stage 3 a W-th part."""
    gathered: int
    """Whole parameters at stage 3, during a forward and backward pass; else 0."""
    masters: int
    """fp32 copies that are updated; 0 where the parameters themselves are."""
    optimizer_states: int
    """Moments, from the first update on."""
    gradients: int
    """What was added up, between the micro-batches of a step. At stage 2 in fp32 the rest of the parameters that a
    partition cuts comes on top: one at most for each of its ends."""
    buffers: int
    """What reducing the gradients needs besides, at the most."""
    host: int
    """How much of this lies in the host's memory because it is offloaded."""

    @property
    def resident(self) -> int:
        """What is held between the steps."""
        return self.parameters + self.masters + self.optimizer_states

    @property
    def peak(self) -> int:
        """The most at a time, wherever it lies."""
        return self.resident + self.gathered + self.gradients + self.buffers


def state_bytes(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    *,
    zero: ZeroConfig | None,
    precision: Precision,
    world_size: int,
    device_type: Literal["cpu", "cuda"],
) -> StateBytes:
    """Bytes of training state on one rank.

    Args:
        model: Shape of the model.
        optimizer: Update rule.
        zero: Stage and options; None for plain torch in one process.
        precision: Resolved arithmetic of forward and backward.
        world_size: Ranks that share the state, W.
        device_type: Memory that a CPU reserves and does not touch is not counted.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    stage = 0 if zero is None else zero.stage
    ranks = world_size if stage else 1
    shapes = parameter_shapes(model)
    whole = sum(math.prod(shape) for shape in shapes.values())
    part = _part_elements(shapes, stage, ranks)
    computes_in_bf16 = precision == "bf16" and not (zero is not None and stage == 0)  # stage 0 runs under autocast
    narrow = 2 if computes_in_bf16 else 4
    has_masters = stage > 0 or computes_in_bf16
    masters = _FP32 * part if has_masters else 0
    moments = _moment_bytes(shapes, optimizer) * part // whole
    parameters = narrow * (part if stage == 3 else whole)
    gradients = _gradient_bytes(zero, precision, whole, part)
    return StateBytes(
        parameters=parameters,
        gathered=narrow * min(whole, GATHERED_ELEMENTS) if stage == 3 else 0,
        masters=masters,
        optimizer_states=moments,
        gradients=gradients,
        buffers=_buffer_bytes(zero, precision, whole, part, device_type),
        host=_host_bytes(zero, parameters, masters + moments + _FP32 * part),
    )


def _part_elements(shapes: dict[str, tuple[int, ...]], stage: int, ranks: int) -> int:
    """Elements of this rank: stage 3 cuts each parameter, stages 1 and 2 the whole; both round up."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    return sum(-(-size // ranks) for size in sizes) if stage == 3 else -(-sum(sizes) // ranks)


def _moment_bytes(shapes: dict[str, tuple[int, ...]], optimizer: OptimizerConfig) -> int:
    """fp32 moments of the whole model: AdamW has two, SGD's and Muon's momentum is one."""
    moments = 0
    for name, shape in shapes.items():
        has_one = optimizer.name == "sgd" or group_of(name, len(shape), optimizer.name) == MUON
        if optimizer.name == "sgd" and optimizer.momentum == 0:
            continue
        moments += (1 if has_one else 2) * math.prod(shape)
    return _FP32 * moments


def _gradient_bytes(zero: ZeroConfig | None, precision: Precision, whole: int, part: int) -> int:
    """Stages 0 and 1 keep whole gradients; stage 1 in bf16 in fp32 sums, which are always there, and as they come."""
    if zero is None or zero.stage == 0:
        return _FP32 * whole
    if zero.stage == 1:
        return (_FP32 + (2 if precision == "bf16" else 0)) * whole
    return _FP32 * part


def _buffer_bytes(
    zero: ZeroConfig | None, precision: Precision, whole: int, part: int, device_type: Literal["cpu", "cuda"]
) -> int:
    """Buckets that gradients are copied to, and a second form of this rank's part while the two are added up."""
    if zero is None:
        return (2 if precision == "bf16" else 0) * whole  # gradients of one micro-batch, before they are added
    bf16 = precision == "bf16"
    if zero.stage == 0 or (zero.stage == 1 and bf16 and zero.offload_optimizer == "none"):
        return _FP32 * min(whole, DEFAULT_BUCKET_ELEMENTS)
    reserved = zero.reduce_bucket_elements or DEFAULT_BUCKET_ELEMENTS
    filled = min(reserved, whole)
    reserved = reserved if device_type == "cuda" else filled
    if zero.stage == 3:
        return _FP32 * (reserved + filled)
    buckets = 2 if zero.overlap_communication else 1
    if bf16:
        return buckets * 2 * reserved + _FP32 * filled  # reduced in fp32
    return buckets * _FP32 * reserved + _FP32 * part


def _host_bytes(zero: ZeroConfig | None, parameters: int, updated: int) -> int:
    """Offloaded parts: masters, moments and the gradients that they are updated by; and a stage 3 rank's parameters."""
    if zero is None:
        return 0
    return (updated if zero.offload_optimizer == "cpu" else 0) + (parameters if zero.offload_parameters == "cpu" else 0)
