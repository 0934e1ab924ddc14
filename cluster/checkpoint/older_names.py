"""Parameters of older checkpoints, as pieces of the parameters that they are parts of now.

Queries, keys and values, and gate and up projections, were parameters of their own before one product made them
together: `self_attn.q_proj.weight` was what the first rows of `self_attn.qkv_proj.weight` are now. Masters and tensor
states lie one below the other in the same way, since optimizers work by element, or by the parts (`parameter_parts`);
scalar states are equal, since the parts were updated together.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from cluster.checkpoint.manifest import Manifest, Piece
from llm.accounting import parameter_parts, parameter_shapes
from llm.config import ModelConfig

_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class PieceOfPart(Piece):
    """A piece of a part; `shape` and `offset` are those in the whole."""

    part: str
    """The part's own name, which its tensors have in the file."""

    def stored_name(self, parameter: str) -> str:
        """Name of the parameter in the file."""
        return self.part


def pieces_from_parts(manifest: Manifest) -> dict[str, tuple[Piece, ...]]:
    """The pieces of every parameter that a checkpoint does not hold itself, and all of whose parts it does."""
    config = manifest.run.get("config")
    if config is None or _EMBEDDING not in manifest.pieces:
        return {}
    vocab_size = manifest.pieces[_EMBEDDING][0].shape[0]
    model = replace(ModelConfig.from_json(config["model"]), vocab_size=vocab_size)
    found = {}
    for name, shape in parameter_shapes(model).items():
        if name not in manifest.pieces:
            pieces = _laid_below_each_other(manifest, shape, parameter_parts(name, shape, model))
            if pieces:
                found[name] = pieces
    return found


def _laid_below_each_other(manifest: Manifest, shape: tuple[int, ...], parts: dict[str, int]) -> tuple[Piece, ...]:
    """Pieces of all parts in the order of their elements in the whole; none where a part is not there as it must be."""
    found: list[Piece] = []
    begin = 0
    for part, rows in parts.items():
        pieces, part_shape = manifest.pieces.get(part, ()), (rows, *shape[1:])
        if not pieces or pieces[0].shape != part_shape:
            return ()
        for piece in pieces:
            fields = {**asdict(piece), "shape": shape, "offset": begin + piece.offset}
            found.append(PieceOfPart(**fields, part=part))
        begin += math.prod(part_shape)
    return tuple(found)
