"""Where DeepSpeed 0.19.8 keeps each parameter's fp32 master: the one file that touches its internals.

Stages 1 and 2 (and their BF16_Optimizer) lay the parameters of a group end to end and cut the flat vector into equal
partitions; `param._hp_mapping` says which part of a parameter fell to this rank. Stage 3 cuts every parameter by
itself; `grad_position` says where this rank's slice lies. Stage 0 keeps all on every rank. A test per stage and
precision writes and reads every parameter through these placements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cluster.engine import Fragment
from cluster.flat_state import Placement
from cluster.topology import Topology


def placements(
    engine: Any, zero: Any, stage: int, names: Mapping[int, str], groups: Mapping[str, str], topology: Topology
) -> tuple[list[Placement], list[Placement]]:
    """Fragments of this rank.

    Args:
        engine: DeepSpeed's engine.
        zero: Its optimizer wrapper; the client's optimizer under stage 0.
        stage: ZeRO stage.
        names: Parameter names by id of the parameter object.
        groups: Group name of each parameter name.
        topology: Place of this rank.

    Returns:
        What this rank saves, and what it must load. They differ under stage 0 only, where each rank saves a slice of
        what all of them hold.
    """
    parameters = [(names[id(parameter)], parameter) for parameter in engine.module.parameters()]
    if stage == 0:
        held = [_whole(name, parameter, groups[name]) for name, parameter in parameters]
        return [_slice_of(placement, topology) for placement in held], held
    if stage == 3:
        owned = [_stage_3(zero, name, parameter, groups[name], topology.rank) for name, parameter in parameters]
    else:
        flats = getattr(zero, "single_partition_of_fp32_groups", None)
        if flats is None:
            flats = zero.fp32_groups_flat_partition
        owned = [_stage_1_2(flats, name, parameter, groups[name]) for name, parameter in parameters]
    present = [placement for placement in owned if placement is not None]
    return present, present


def refresh_parameters(zero: Any, replicated: bool) -> None:
    """Give every rank the parameters that follow from the masters just set."""
    if replicated:
        return
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        for sub_group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(sub_group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        zero.invalidate_secondary_tensor()  # hpZ's second copy is of the parameters as they were
        return
    zero.update_lp_params()


def _whole(name: str, parameter: torch.Tensor, group: str) -> Placement:
    return Placement(Fragment(name, group, tuple(parameter.shape), 0, parameter.numel()), parameter, 0)


def _slice_of(placement: Placement, topology: Topology) -> Placement:
    whole = placement.fragment
    start = whole.length * topology.rank // topology.world_size
    stop = whole.length * (topology.rank + 1) // topology.world_size
    return Placement(Fragment(whole.name, whole.group, whole.shape, start, stop - start), placement.flat, start)


def _stage_1_2(flats: list[torch.Tensor], name: str, parameter: Any, group: str) -> Placement | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    inside, place = mapping.lp_fragment_address, mapping.hp_fragment_address
    fragment = Fragment(name, group, tuple(parameter.shape), int(inside.start), int(inside.numel))
    return Placement(fragment, flats[mapping.param_group_index], int(place.start))


def _stage_3(zero: Any, name: str, parameter: Any, group: str, rank: int) -> Placement | None:
    sub_group, start, slice_length = zero.grad_position[zero.get_param_id(parameter)]
    offset = rank * slice_length
    length = min(offset + slice_length, parameter.ds_numel) - offset
    if length <= 0:
        return None
    fragment = Fragment(name, group, tuple(parameter.ds_shape), offset, length)
    return Placement(fragment, zero.fp32_partitioned_groups_flat[sub_group], start)
