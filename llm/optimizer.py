"""Which parameters are updated how: a pure rule, and the groups it makes in an order that never varies.

Imports no torch: `plan` needs the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llm.config import OptimizerName
from llm.errors import ParameterGroupError

if TYPE_CHECKING:
    from torch import nn

GroupName = Literal["muon", "decay", "no_decay"]
MUON: GroupName = "muon"
_HIDDEN = "model.layers."
_ROUTER = ".gate.weight"


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share an update rule and a weight decay."""

    name: GroupName
    weight_decay: float
    """Decoupled decay, a fraction of the learning rate per step."""
    parameters: tuple[tuple[str, nn.Parameter], ...]
    """(name, parameter) in the order of the module."""


def group_of(name: str, ndim: int, optimizer: OptimizerName = "adamw") -> GroupName:
    """The group of a parameter: matrices and embeddings are decayed, vectors are not.

    Under Muon the matrices of the decoder layers are a group of their own. Embedding and output matrices are not in it:
    their rows are tokens, which a batch meets one by one, and AdamW updates them better (Jordan, 2024).

    Args:
        name: Full name of the parameter.
        ndim: Dimensions of the whole parameter, not of a partition of it.
        optimizer: The update rule asked for.
    """
    if optimizer == "muon" and ndim >= 2 and name.startswith(_HIDDEN) and not name.endswith(_ROUTER):
        return MUON
    return "decay" if ndim >= 2 else "no_decay"


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    shapes: Mapping[str, Sequence[int]] | None = None,
    optimizer: OptimizerName = "adamw",
) -> list[ParameterGroup]:
    """The trainable parameters in groups "muon" (under Muon only), "decay" and "no_decay", in the order of the module.

    Args:
        model: Its `named_parameters` give the order; tied parameters appear once, frozen ones not at all.
        weight_decay: Of all groups but "no_decay", which has 0.
        shapes: Whole shapes by name, needed where the parameters themselves are already partitioned.
        optimizer: The update rule asked for.

    Raises:
        ParameterGroupError: A parameter is empty, so its whole shape is unknown, and there are no `shapes`.
    """
    members: dict[GroupName, list[tuple[str, nn.Parameter]]] = {"decay": [], "no_decay": []}
    if optimizer == "muon":
        members = {MUON: [], **members}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if shapes is None and parameter.numel() == 0:
            raise ParameterGroupError(
                f"parameter {name} has shape {tuple(parameter.shape)}: it is empty, probably because it is "
                "partitioned already, and the group follows from the whole shape. "
                "Pass shapes=parameter_shapes(config)."
            )
        ndim = parameter.ndim if shapes is None else len(shapes[name])
        members[group_of(name, ndim, optimizer)].append((name, parameter))
    return [
        ParameterGroup(
            name=name, weight_decay=0.0 if name == "no_decay" else weight_decay, parameters=tuple(parameters)
        )
        for name, parameters in members.items()
    ]


def torch_parameter_groups(groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """Groups as the dictionaries that a torch optimizer takes, empty groups left out."""
    return [
        {
            "params": [parameter for _, parameter in group.parameters],
            "weight_decay": group.weight_decay,
            "name": group.name,
        }
        for group in groups
        if group.parameters
    ]
