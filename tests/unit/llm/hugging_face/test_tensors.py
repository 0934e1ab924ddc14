"""The pieces of every family cover each parameter once, and go there and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llm.accounting import parameter_shapes
from llm.hugging_face.configuration import read_config
from llm.hugging_face.tensors import pieces

MakeTwin = Callable[..., tuple[Any, Path]]


def test_pieces_cover_every_parameter_once(case: str, make_twin: MakeTwin) -> None:
    described = read_config(make_twin(case)[1])
    covered = {name: torch.zeros(shape) for name, shape in parameter_shapes(described.config).items()}
    for piece in pieces(described.family, described.config):
        covered[piece.parameter][piece.region] += 1
    assert all(bool((count == 1).all()) for count in covered.values())


def test_names_and_shapes_are_those_of_transformers(case: str, make_twin: MakeTwin) -> None:
    twin, directory = make_twin(case)
    described = read_config(directory)
    expected = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    assert {piece.theirs: piece.shape for piece in pieces(described.family, described.config)} == expected


def test_a_piece_gives_back_what_it_was_filled_with(case: str, make_twin: MakeTwin) -> None:
    described = read_config(make_twin(case)[1])
    shapes = parameter_shapes(described.config)
    generator = torch.Generator().manual_seed(0)
    for piece in pieces(described.family, described.config):
        theirs = torch.randint(-8, 8, piece.shape, generator=generator).float()
        parameter = torch.zeros(shapes[piece.parameter])
        piece.fill(parameter, theirs)
        assert torch.equal(piece.to_theirs(parameter, torch.float32), theirs), piece.theirs
