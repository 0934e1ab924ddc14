"""The pieces of every family cover each parameter once, and go there and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llm.accounting import parameter_shapes
from llm.config import ModelConfig
from llm.hugging_face.configuration import read_config
from llm.hugging_face.families import FAMILIES
from llm.hugging_face.tensors import pieces
from llm.hugging_face.weights import WHOLE_FILE

MakeTwin = Callable[..., tuple[Any, Path]]


def test_pieces_cover_every_parameter_once(case: str, make_twin: MakeTwin) -> None:
    described = read_config(make_twin(case)[1])
    covered = {name: torch.zeros(shape) for name, shape in parameter_shapes(described.config).items()}
    for piece in pieces(described.family.names, described.config):
        covered[piece.parameter][piece.region] += 1
    assert all(bool((count == 1).all()) for count in covered.values())


def test_names_and_shapes_are_those_that_transformers_saves(case: str, make_twin: MakeTwin) -> None:
    directory = make_twin(case)[1]
    described = read_config(directory)
    expected = {name: tuple(tensor.shape) for name, tensor in load_file(directory / WHOLE_FILE).items()}
    assert {piece.theirs: piece.shape for piece in pieces(described.family.names, described.config)} == expected


def test_names_and_shapes_are_those_that_transformers_saves_when_experts_are_stacked(
    experts_case: str, make_twin: MakeTwin
) -> None:
    directory = make_twin(experts_case, save_original_format=False)[1]
    described = read_config(directory)
    expected = {name: tuple(tensor.shape) for name, tensor in load_file(directory / WHOLE_FILE).items()}
    (stacked,) = described.family.also_read
    assert {piece.theirs: piece.shape for piece in pieces(stacked, described.config)} == expected


def test_a_piece_is_one_matrix_of_one_expert_when_experts_are_apart() -> None:
    config = ModelConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_experts=3, moe_intermediate_size=5)
    regions = {piece.theirs: piece.region for piece in pieces(FAMILIES["mixtral"].names, config)}
    experts = "model.layers.1.block_sparse_moe.experts"
    assert regions[f"{experts}.2.w1.weight"] == (2, slice(0, 5))
    assert regions[f"{experts}.2.w3.weight"] == (2, slice(5, 10))
    assert regions[f"{experts}.1.w2.weight"] == (1, slice(0, 8))


def test_a_piece_gives_back_what_it_was_filled_with(case: str, make_twin: MakeTwin) -> None:
    described = read_config(make_twin(case)[1])
    shapes = parameter_shapes(described.config)
    generator = torch.Generator().manual_seed(0)
    for piece in pieces(described.family.names, described.config):
        theirs = torch.randint(-8, 8, piece.shape, generator=generator).float()
        parameter = torch.zeros(shapes[piece.parameter])
        piece.fill(parameter, theirs)
        assert torch.equal(piece.to_theirs(parameter, torch.float32), theirs), piece.theirs
