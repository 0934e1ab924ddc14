"""Which tensor of a Hugging Face file is which part of which parameter here.

One list of pieces serves both directions: import fills a parameter from its pieces, export cuts it into them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.accounting import is_norm, parameter_parts, parameter_shapes
from llm.config import ModelConfig
from llm.hugging_face.families import Family, TensorNames

OUTPUT = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
_IN_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)\.(\w+)")
_OUTSIDE = re.compile(r"model\.(.+)\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One tensor of a Hugging Face file, and the region of one of our parameters that it is."""

    theirs: str
    """Its name in the file."""
    parameter: str
    """Name of the parameter here."""
    region: tuple[slice | int, ...]
    """Where it lies in the parameter; dimensions that follow are whole."""
    shape: tuple[int, ...]
    """Its shape in the file."""
    transposed: bool
    """The file has rows and columns changed."""
    offset: float
    """What is added to the file's numbers to give ours."""

    @property
    def size(self) -> int:
        """Its numbers."""
        return math.prod(self.shape)

    def fill(self, parameter: Tensor, theirs: Tensor) -> None:
        """Set the region of a whole parameter to what the file holds."""
        region = parameter[self.region]
        region.copy_(theirs.T if self.transposed else theirs)
        if self.offset:
            region.add_(self.offset)

    def to_theirs(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """What the file holds of a whole parameter, in the dtype of the file; contiguous."""
        ours = parameter[self.region]
        ours = ours.float() - self.offset if self.offset else ours
        return (ours.T if self.transposed else ours).to(dtype).contiguous()


def pieces(family: Family, config: ModelConfig) -> list[Piece]:
    """All tensors of a model's files in the order of `parameter_shapes`, so that those of a parameter come together."""
    return [piece for name, shape in parameter_shapes(config).items() for piece in _cut(name, shape, family, config)]


def _cut(name: str, shape: tuple[int, ...], family: Family, config: ModelConfig) -> Iterator[Piece]:
    names = family.names
    parts = {name: shape[0]} if names.fused else parameter_parts(name, shape, config)
    transposed = names.transposed and len(shape) == 2 and _IN_BLOCK.fullmatch(name) is not None
    start = 0
    for part, rows in parts.items():
        inner = (rows, *shape[1:])
        yield Piece(
            theirs=_their_name(part, names),
            parameter=name,
            region=(slice(start, start + rows),),
            shape=inner[::-1] if transposed else inner,
            transposed=transposed,
            offset=names.norm_offset if is_norm(name) else 0.0,
        )
        start += rows


def _their_name(name: str, names: TensorNames) -> str:
    if found := _IN_BLOCK.fullmatch(name):
        layer, module, kind = found.groups()
        return f"{names.prefix}{names.layers}.{layer}.{names.modules.get(module, module)}.{kind}"
    if found := _OUTSIDE.fullmatch(name):
        module, kind = found.groups()
        return f"{names.prefix}{names.modules.get(module, module)}.{kind}"
    return name
