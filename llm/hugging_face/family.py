"""What an entry of the table of families says. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from llm.hugging_face.config_fields import Translation

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """What a family calls its tensors, and how it stores them."""

    prefix: str = "model."
    """Of everything but the output projection."""
    layers: str = "layers"
    """The list of blocks."""
    modules: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Names of modules that differ, ours to theirs, without the block's; * stands for the number of an expert."""
    fused: bool = False
    """Queries, keys and values lie in one tensor there too."""
    stacked_experts: bool = False
    """The experts of a layer lie in one tensor there too, and in one for each matrix of each expert otherwise."""
    transposed: bool = False
    """Matrices of blocks are stored with inputs as rows, as in GPT-2's Conv1D."""
    norm_offset: float = 0.0
    """What is added to a norm's stored weight to give its scale; Gemma's norms compute with 1 + w."""
    derived: tuple[str, ...] = (".rotary_emb.inv_freq",)
    """Ends of the names of tensors that old files hold and that follow from the configuration."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`."""

    model_type: str
    architecture: str
    """Class of transformers that has the output projection."""
    translations: tuple[Translation, ...]
    constants: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    """Fields of ModelConfig that are the same in all of its models."""
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _NOTHING)
    """Keys of config.json that would change what is computed, and the values that do not."""
    harmless: tuple[str, ...] = ()
    """Keys that its models carry and that change nothing in the forward pass."""
    heads_divide_width: bool = False
    """transformers refuses a hidden_size that the heads do not divide, even where head_dim is given."""
    names: TensorNames = field(default_factory=TensorNames)
    """Layout of the tensors, the one that an export has."""
    also_read: tuple[TensorNames, ...] = ()
    """More layouts in which there are files; prefix and derived are those of the first."""
