"""Rotary positions in a config.json: `rope_parameters` of transformers 5, and the keys that came before.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from llm.errors import HuggingFaceConfigError
from llm.hugging_face.config_fields import validated
from llm.model_config import ModelConfig, RopeScaling, RopeType

THETA = 10000.0
GEMMA3_THETA = 1_000_000.0
MIXTRAL_THETA = 1_000_000.0
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (None, 1.0),
    "truncate": (None, True),
    "mscale": (None,),
    "mscale_all_dim": (None,),
}
_SCALING_FIELDS = tuple(field.name for field in dataclasses.fields(RopeScaling) if field.name != "rope_type")
_READ = {"linear": ("factor",)}


class _Rope(NamedTuple):
    theta: float
    scaling: RopeScaling | None


@dataclass(frozen=True)
class Rope:
    """Base and scaling of the rotary frequencies."""

    default_theta: float = THETA
    """The base where the file states none."""
    keys: tuple[str, ...] = ("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor")

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """rope_theta and rope_scaling."""
        rope = _read_rope(document.get("rope_parameters"), document, self.default_theta)
        return {"rope_theta": rope.theta, "rope_scaling": rope.scaling}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The keys of transformers 5, and those of 4, which would else take its default without a word."""
        return {
            "rope_parameters": _written(config.rope_theta, config.rope_scaling),
            "rope_theta": config.rope_theta,
            "rope_scaling": None if config.rope_scaling is None else _written(None, config.rope_scaling),
        }


@dataclass(frozen=True)
class RopeByLayerType:
    """Gemma 3: full and sliding layers have rotary frequencies of their own."""

    keys: tuple[str, ...] = (
        "rope_parameters",
        "rope_theta",
        "rope_scaling",
        "partial_rotary_factor",
        "rope_local_base_freq",
    )

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """rope_theta, rope_scaling and rope_local_base_freq."""
        by_type = document.get("rope_parameters") or {}
        if set(by_type) - {"full_attention", "sliding_attention"}:
            raise HuggingFaceConfigError(
                f"rope_parameters has the keys {sorted(by_type)}, and this family has one set for full_attention and "
                "one for sliding_attention. Take the file as it was published."
            )
        full = _read_rope(by_type.get("full_attention"), document, GEMMA3_THETA)
        older = {"rope_theta": document.get("rope_local_base_freq", THETA)}
        sliding = _read_rope(by_type.get("sliding_attention"), older, THETA)
        if sliding == full:
            return {"rope_theta": full.theta, "rope_scaling": full.scaling}
        if sliding.scaling is not None:
            raise HuggingFaceConfigError(
                f"rope_parameters.sliding_attention has rope_type {sliding.scaling.rope_type}, and sliding layers here "
                "have none of their own. Take a model that leaves them at `default`."
            )
        return {"rope_theta": full.theta, "rope_scaling": full.scaling, "rope_local_base_freq": sliding.theta}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Both sets, and the older keys where they can say the same."""
        full = _written(config.rope_theta, config.rope_scaling)
        local = config.rope_local_base_freq
        return {
            "rope_parameters": {
                "full_attention": full,
                "sliding_attention": dict(full) if local is None else _written(local, None),
            },
            "rope_theta": config.rope_theta,
            "rope_scaling": None if config.rope_scaling is None else _written(None, config.rope_scaling),
            "rope_local_base_freq": config.rope_theta if local is None else local,
        }


def _read_rope(parameters: Mapping[str, Any] | None, document: Mapping[str, Any], default_theta: float) -> _Rope:
    """One set of rotary frequencies: transformers 5 puts all of it in one mapping, 4 had the base beside."""
    older = document.get("rope_scaling")
    if parameters and older and _scaling(parameters, document) != _scaling(older, document):
        raise HuggingFaceConfigError(
            f"rope_parameters is {dict(parameters)} and rope_scaling {dict(older)}: they contradict each other, and "
            "which was meant is unknown. Delete the wrong one."
        )
    stated = dict(parameters or older or {})
    theta = stated.get("rope_theta")
    theta = document.get("rope_theta", default_theta) if theta is None else theta
    factor = stated.get("partial_rotary_factor", document.get("partial_rotary_factor"))
    if factor not in _NEUTRAL["partial_rotary_factor"]:
        raise HuggingFaceConfigError(
            f"partial_rotary_factor is {factor}: a part of each head is left unrotated, which is not supported here. "
            "Take a model that rotates whole heads."
        )
    return _Rope(theta, _scaling(stated, document))


def _scaling(stated: Mapping[str, Any], document: Mapping[str, Any]) -> RopeScaling | None:
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind == "default":
        return None
    if kind not in get_args(RopeType):
        raise HuggingFaceConfigError(
            f"rope_type is {kind!r}, and rotary frequencies here are stretched by {', '.join(get_args(RopeType))} or "
            "not at all (default). Take a model with one of these."
        )
    known = {*_SCALING_FIELDS, *_NEUTRAL, "rope_type", "type", "rope_theta"}
    for name, value in stated.items():
        if name not in known or value not in _NEUTRAL.get(name, (value,)):
            raise HuggingFaceConfigError(
                f"the rotary scaling of type {kind} has {name} = {value!r}, which is not supported here. "
                "Take a model without it."
            )
    read = _READ.get(kind, _SCALING_FIELDS)
    values = {name: stated[name] for name in read if stated.get(name) is not None}
    if kind != "linear" and "original_max_position_embeddings" not in values:
        values["original_max_position_embeddings"] = document.get("max_position_embeddings")
    return validated(RopeScaling, {"rope_type": kind, **values})


def _written(theta: float | None, scaling: RopeScaling | None) -> dict[str, Any]:
    document: dict[str, Any] = {} if theta is None else {"rope_theta": theta}
    if scaling is None:
        return {"rope_type": "default", **document}
    stated = {name: value for name in _SCALING_FIELDS if (value := getattr(scaling, name)) is not None}
    if scaling.rope_type == "llama3":  # transformers has no defaults for these
        stated = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} | stated
    return {"rope_type": scaling.rope_type, **stated, **document}
