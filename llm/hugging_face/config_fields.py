"""What a config.json says, as two-way translations: each reads some of its keys, and writes them back.

Keys and what stands for a missing one are those of the configuration classes of transformers 5. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar, cast

from llm.errors import HuggingFaceConfigError
from llm.model_config import LayerType, ModelConfig

_EFFECTIVE = {
    "num_key_value_heads": "key_value_heads",
    "head_dim": "head_size",
    "attention_multiplier": "score_scale",
    "moe_intermediate_size": "expert_size",
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "gelu_new": "gelu_pytorch_tanh",
}
_Config = TypeVar("_Config")
_LAYER_TYPES: tuple[LayerType, ...] = ("full_attention", "sliding_attention")


class Translation(Protocol):
    """A part of the configuration, in the one language and the other."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of config.json that `read` understands."""

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of ModelConfig out of a config.json; problems raise a HuggingFaceConfigError without its path."""

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Keys of config.json; what the family cannot say is left out, and found when it is read again."""


@dataclass(frozen=True)
class Field:
    """A value that both sides know, under one name or two."""

    ours: str
    default: Any = None
    """What transformers takes where the key is missing."""
    theirs: str = ""
    """Empty where the name is the same."""
    needed: bool = False
    """A file without it is not taken for a model of the size that transformers happens to have as its default."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.theirs or self.ours,)

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The value as it is."""
        if self.needed and document.get(self.keys[0]) is None:
            raise HuggingFaceConfigError(
                f"{self.keys[0]} is missing, and the model has no shape without it. Take the file as it was published."
            )
        return {self.ours: document.get(self.keys[0], self.default)}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The value that is in effect, so that nothing depends on a reader's defaults."""
        return {self.keys[0]: getattr(config, _EFFECTIVE.get(self.ours, self.ours))}


@dataclass(frozen=True)
class Activation:
    """The activation of the feed-forward, which has more names there."""

    key: str
    default: str
    gelu_means_tanh: bool = False
    """Gemma 1 was published with `gelu` where the tanh approximation was meant, and transformers corrects it."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """hidden_act."""
        name = document.get(self.key, self.default)
        if name not in _ACTIVATIONS:
            raise HuggingFaceConfigError(
                f"{self.key} is {name!r}, and the feed-forward here knows {', '.join(_ACTIVATIONS)}. "
                "Take a model with one of them."
            )
        return {"hidden_act": "gelu_pytorch_tanh" if self.gelu_means_tanh and name == "gelu" else _ACTIVATIONS[name]}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The name; GPT-2's own for the tanh approximation where that is the family's."""
        if config.hidden_act == "gelu_pytorch_tanh" and self.default == "gelu_new":
            return {self.key: "gelu_new"}
        return {self.key: config.hidden_act}


@dataclass(frozen=True)
class WidthOfFeedForward:
    """GPT-2's n_inner, which may be null for four times the width."""

    keys: tuple[str, ...] = ("n_inner",)

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """intermediate_size."""
        inner = document.get("n_inner")
        return {"intermediate_size": 4 * document.get("n_embd", 768) if inner is None else inner}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """n_inner, spelled out."""
        return {"n_inner": config.intermediate_size}


@dataclass(frozen=True)
class ScaledByRootOfHead:
    """GPT-2's scale_attn_weights: scores are multiplied by 1 / sqrt(K), or left as they are."""

    keys: tuple[str, ...] = ("scale_attn_weights",)

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """attention_multiplier."""
        return {"attention_multiplier": None if document.get("scale_attn_weights", True) else 1.0}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """scale_attn_weights."""
        return {"scale_attn_weights": config.score_scale != 1.0}


@dataclass(frozen=True)
class QueryScale:
    """Gemma's query_pre_attn_scalar s: scores are multiplied by 1 / sqrt(s)."""

    keys: tuple[str, ...] = ("query_pre_attn_scalar",)

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """attention_multiplier; null where it is the usual one."""
        scalar = document.get("query_pre_attn_scalar", 256)
        if isinstance(scalar, bool) or not isinstance(scalar, int | float) or not scalar > 0:
            raise HuggingFaceConfigError(
                f"query_pre_attn_scalar is {scalar!r}: scores are divided by its root, so it is above 0. "
                "Take the file as it was published."
            )
        return {"attention_multiplier": None if scalar == document.get("head_dim", 256) else scalar**-0.5}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The whole number that transformers asks for; another scale is found when it is read again."""
        return {"query_pre_attn_scalar": max(round(config.score_scale**-2), 1)}


@dataclass(frozen=True)
class RootOfWidth:
    """Gemma multiplies embeddings by sqrt(D) and has no key for it."""

    keys: tuple[str, ...] = ()

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """embedding_multiplier."""
        return {"embedding_multiplier": math.sqrt(document["hidden_size"])}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class EveryLayerSlides:
    """Mistral's sliding_window, which is all layers' or, when null, none's."""

    default: int | None = 4096
    keys: tuple[str, ...] = ("sliding_window",)

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """sliding_window."""
        return {"sliding_window": document.get("sliding_window", self.default)}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """sliding_window."""
        return {"sliding_window": config.sliding_window}


PatternOf = Callable[[Mapping[str, Any], int], Sequence[str]]
"""The type of each layer in a config.json without layer_types; takes the number of layers."""


@dataclass(frozen=True)
class SomeLayersSlide:
    """layer_types with sliding_window; before it was invented, a rule of each family's own."""

    older: PatternOf
    """The rule where layer_types is missing."""
    keys: tuple[str, ...]
    switched: bool = False
    """Qwen has use_sliding_window, without which sliding_window says nothing."""

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """sliding_window and layer_types, the latter as the shortest pattern."""
        count = document["num_hidden_layers"]
        window = document.get("sliding_window", 4096)
        if self.switched and not document.get("use_sliding_window", False):
            window = None
        types = document.get("layer_types")
        types = list(self.older({**document, "sliding_window": window}, count) if types is None else types)
        if len(types) != count or set(types) - set(_LAYER_TYPES):
            raise HuggingFaceConfigError(
                f"layer_types is {types}, and num_hidden_layers {count}: each layer is one of "
                f"{' or '.join(_LAYER_TYPES)}. Take a model of such layers."
            )
        if "sliding_attention" not in types:
            return {"sliding_window": None, "layer_types": None}
        return {"sliding_window": window, "layer_types": _shortest_pattern(types)}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Each layer's type; and what readers older than layer_types look at."""
        types = [config.layer_type(layer) for layer in range(config.num_hidden_layers)]
        document: dict[str, Any] = {"layer_types": types, "sliding_window": config.sliding_window}
        if self.switched:
            leading = types.index("sliding_attention") if "sliding_attention" in types else len(types)
            document |= {"use_sliding_window": config.sliding_window is not None, "max_window_layers": leading}
        return document


@cache
def _adapter(kind: Any) -> Any:
    """Takes 30 ms to make, and an export tries every family."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def validated(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """A configuration of values that came from a file, each of the type that its field has.

    Raises:
        HuggingFaceConfigError: They are not, or do not go together.
    """
    from pydantic import ValidationError

    try:
        # As JSON, in which strict mode takes an object for a dataclass and a list for a tuple.
        adapter = _adapter(cast(Hashable, kind))
        checked: _Config = adapter.validate_json(json.dumps(dict(values), default=dataclasses.asdict))
        return checked
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        stated = f"{where} is {first['input']!r}: " if where else ""
        raise HuggingFaceConfigError(f"{stated}{first['msg'].removeprefix('Value error, ')}") from error


def qwen_layers() -> SomeLayersSlide:
    """Qwen 2 and 3: layers from max_window_layers on slide."""

    def older(document: Mapping[str, Any], count: int) -> list[str]:
        first = count if document["sliding_window"] is None else document.get("max_window_layers", 28)
        return ["sliding_attention" if layer >= first else "full_attention" for layer in range(count)]

    return SomeLayersSlide(
        older, ("sliding_window", "layer_types", "use_sliding_window", "max_window_layers"), switched=True
    )


def gemma_layers(period: int, period_keys: tuple[str, ...] = ()) -> SomeLayersSlide:
    """Gemma 2 and 3: every so many-th layer has full attention."""

    def older(document: Mapping[str, Any], count: int) -> list[str]:
        stated = next((document[key] for key in period_keys if document.get(key) is not None), period)
        if stated < 1:
            raise HuggingFaceConfigError(f"{period_keys[0]} is {stated}, and at least 1. Take the file as published.")
        return ["sliding_attention" if (layer + 1) % stated else "full_attention" for layer in range(count)]

    return SomeLayersSlide(older, ("sliding_window", "layer_types", *period_keys))


def _shortest_pattern(types: list[LayerType]) -> tuple[LayerType, ...] | None:
    if len(set(types)) == 1:
        return None
    for length in range(1, len(types)):
        if all(kind == types[layer % length] for layer, kind in enumerate(types)):
            return tuple(types[:length])
    return tuple(types)
