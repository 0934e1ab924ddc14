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
from llm.hugging_face.families import TensorNames

OUTPUT = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
_IN_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)\.(\w+)")
_OUTSIDE = re.compile(r"model\.(.+)\.(\w+)")
_EXPERT = re.compile(r"\.(\d+)\.")


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


def pieces(names: TensorNames, config: ModelConfig) -> list[Piece]:
    """All tensors of a model's files in the order of `parameter_shapes`, so that those of a parameter come together."""
    return [piece for name, shape in parameter_shapes(config).items() for piece in _cut(name, shape, names, config)]


def _cut(name: str, shape: tuple[int, ...], names: TensorNames, config: ModelConfig) -> Iterator[Piece]:
    whole = names.fused or (names.stacked_experts and len(shape) == 3)
    parts = {name: shape[0]} if whole else parameter_parts(name, shape, config)
    transposed = names.transposed and len(shape) == 2 and _IN_BLOCK.fullmatch(name) is not None
    start = 0
    for part, rows in parts.items():
        region: tuple[slice | int, ...] = (slice(start, start + rows),)
        inner = (rows, *shape[1:])
        if len(shape) == 3 and not whole:
            expert, first = divmod(start, shape[1])
            region, inner = (expert, slice(first, first + rows)), (rows, shape[2])
        yield Piece(
            theirs=_their_name(part, names),
            parameter=name,
            region=region,
            shape=inner[::-1] if transposed else inner,
            transposed=transposed,
            offset=names.norm_offset if is_norm(name) else 0.0,
        )
        start += rows


def _their_name(name: str, names: TensorNames) -> str:
    if found := _IN_BLOCK.fullmatch(name):
        layer, module, kind = found.groups()
        return f"{names.prefix}{names.layers}.{layer}.{_renamed(module, names)}.{kind}"
    if found := _OUTSIDE.fullmatch(name):
        module, kind = found.groups()
        return f"{names.prefix}{_renamed(module, names)}.{kind}"
    return name


def _renamed(module: str, names: TensorNames) -> str:
    """Their name of a module; the table has a * for the number of an expert."""
    pattern = _EXPERT.sub(".*.", module)
    theirs = names.modules.get(pattern, pattern)
    return theirs.replace("*", expert[1]) if (expert := _EXPERT.search(module)) else theirs
