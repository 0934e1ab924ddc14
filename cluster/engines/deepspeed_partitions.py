"""Where DeepSpeed 0.19.8 keeps each parameter's fp32 master: the one file that touches its internals.

Stages 1 and 2 (and their BF16_Optimizer) lay the parameters of a group end to end and cut the flat vector into equal
partitions; `param._hp_mapping` says which part of a parameter fell to this rank. Stage 3 cuts every parameter by
itself; `grad_position` says where this rank's slice lies. Stage 0 keeps all on every rank. A test per stage and
precision writes and reads every parameter through these placements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cluster.engines.flat_state import Placement
from cluster.engines.protocol import Fragment
from cluster.topology import Topology


@dataclass(frozen=True)
class Placements:
    """Fragments by what is done with them; they differ where ranks hold more, or less, than their share."""

    all: list[Placement]
    """Of every parameter, in the order of the module: empty ones where nothing fell to this rank."""
    held: list[Placement]
    """What this rank must load."""
    owned: list[Placement]
    """What this rank saves: under stage 0 a slice of what all of them hold."""


def placements(
    engine: Any, zero: Any, stage: int, names: Mapping[int, str], groups: Mapping[str, str], topology: Topology
) -> Placements:
    """Fragments of this rank.

    Args:
        engine: DeepSpeed's engine.
        zero: Its optimizer wrapper; the client's optimizer under stage 0.
        stage: ZeRO stage.
        names: Parameter names by id of the parameter object.
        groups: Group name of each parameter name.
        topology: Place of this rank.
    """
    parameters = [(names[id(parameter)], parameter) for parameter in engine.module.parameters()]
    if stage == 0:
        held = [_whole(name, parameter, groups[name]) for name, parameter in parameters]
        return Placements(held, held, [_slice_of(placement, topology) for placement in held])
    if stage == 3:
        every = [_stage_3(zero, name, parameter, groups[name], topology.rank) for name, parameter in parameters]
    else:
        flats = _flats_by_parameter(zero)
        every = [_stage_1_2(flats[id(parameter)], name, parameter, groups[name]) for name, parameter in parameters]
    present = [placement for placement in every if placement.fragment.length]
    return Placements(every, present, present)


def refresh_parameters(zero: Any, replicated: bool) -> None:
    """Give every rank the parameters that follow from the masters just set."""
    if replicated:
        return
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        zero._partition_all_parameters()  # whole ones, which an engine that was trained keeps, would not be gathered
        for sub_group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(sub_group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        zero.invalidate_secondary_tensor()  # hpZ's second copy is of the parameters as they were
        return
    zero.update_lp_params()


def set_micro_batches(engine: Any, count: int) -> None:
    """Make the coming step one of `count` micro-batches, whatever the steps before had.

    DeepSpeed takes every n-th micro-batch since the beginning for the last of its step, so a new n alone would put the
    ends of steps wrong: the count of micro-batches begins anew with each.
    """
    engine.set_train_batch_size(count * engine.train_micro_batch_size_per_gpu() * engine.dp_world_size)
    engine.micro_steps = 0


def clear_gradients(engine: Any, zero: Any, replicated: bool) -> None:
    """Drop the gradients that were added up, and begin the count of micro-batches of a step anew.

    What DeepSpeed does where a step of low precision overflows, at any micro-batch of a step.
    """
    engine.micro_steps -= engine.micro_steps % engine.gradient_accumulation_steps()
    if replicated:
        engine.zero_grad()
    elif hasattr(zero, "fp32_partitioned_groups_flat"):
        zero._pre_step()
        zero._overflow_clean_up(zero.loss_scale)
    elif hasattr(zero, "single_partition_of_fp32_groups"):
        _clear_stage_1_2(zero)
    else:
        zero.zero_grad()


def _clear_stage_1_2(zero: Any) -> None:
    """What its `step` does where the norm is not finite, and what it leaves: gradients kept apart for offloading."""
    zero.micro_step_id = -1  # it is raised before the first gradient of a micro-batch
    zero.zero_grad()
    if zero.cpu_offload:
        zero._offload_accumulated_param_ids = set()
        zero.reset_cpu_buffers()
    zero.averaged_gradients.clear()
    zero.all_grad_tensors.clear()


def _whole(name: str, parameter: torch.Tensor, group: str) -> Placement:
    return Placement(Fragment(name, group, tuple(parameter.shape), 0, parameter.numel()), parameter, 0)


def _slice_of(placement: Placement, topology: Topology) -> Placement:
    whole = placement.fragment
    start = whole.length * topology.rank // topology.world_size
    stop = whole.length * (topology.rank + 1) // topology.world_size
    return Placement(Fragment(whole.name, whole.group, whole.shape, start, stop - start), placement.flat, start)


def _flats_by_parameter(zero: Any) -> dict[int, torch.Tensor]:
    """This rank's flat partition of the group of each parameter, by id of the parameter object."""
    if hasattr(zero, "single_partition_of_fp32_groups"):
        groups, flats = zero.bit16_groups, zero.single_partition_of_fp32_groups
    else:
        groups, flats = zero.bf16_groups, zero.fp32_groups_flat_partition
    return {id(parameter): flat for group, flat in zip(groups, flats, strict=True) for parameter in group}


def _stage_1_2(flat: torch.Tensor, name: str, parameter: Any, group: str) -> Placement:
    mapping, shape = parameter._hp_mapping, tuple(parameter.shape)
    if mapping is None:
        return Placement(Fragment(name, group, shape, 0, 0), flat, 0)
    inside, place = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Placement(Fragment(name, group, shape, int(inside.start), int(inside.numel)), flat, int(place.start))


def _stage_3(zero: Any, name: str, parameter: Any, group: str, rank: int) -> Placement:
    sub_group, start, slice_length = zero.grad_position[zero.get_param_id(parameter)]
    flat, shape = zero.fp32_partitioned_groups_flat[sub_group], tuple(parameter.ds_shape)
    offset = rank * slice_length
    length = min(offset + slice_length, parameter.ds_numel) - offset
    if length <= 0:
        return Placement(Fragment(name, group, shape, 0, 0), flat, 0)
    return Placement(Fragment(name, group, shape, offset, length), flat, start)
