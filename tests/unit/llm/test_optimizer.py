"""Parameter groups: who is decayed, in which order."""

from __future__ import annotations

import pytest
import torch

from llm.accounting import parameter_shapes
from llm.config import ModelConfig
from llm.errors import ParameterGroupError
from llm.optimizer import group_of, parameter_groups, torch_parameter_groups
from llm.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=False
)


def model() -> Transformer:
    return Transformer(CONFIG, "sdpa")


@pytest.mark.parametrize(
    ("name", "ndim", "expected"),
    [
        ("model.embed_tokens.weight", 2, "decay"),
        ("model.norm.weight", 1, "no_decay"),
        ("scale", 0, "no_decay"),
    ],
)
def test_group_follows_dimensions_when_asked(name: str, ndim: int, expected: str) -> None:
    assert group_of(name, ndim) == expected


def test_groups_hold_every_parameter_once_in_module_order_when_made() -> None:
    decay, no_decay = parameter_groups(model(), 0.1)
    shapes = parameter_shapes(CONFIG)
    assert (decay.name, decay.weight_decay) == ("decay", 0.1)
    assert (no_decay.name, no_decay.weight_decay) == ("no_decay", 0.0)
    assert [name for name, _ in decay.parameters] == [name for name in shapes if len(shapes[name]) == 2]
    assert [name for name, _ in no_decay.parameters] == [name for name in shapes if len(shapes[name]) == 1]


@pytest.mark.parametrize(
    ("name", "ndim", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", 2, "muon"),
        ("model.layers.11.mlp.down_proj.weight", 2, "muon"),
        ("model.layers.0.self_attn.q_norm.weight", 1, "no_decay"),
        ("model.embed_tokens.weight", 2, "decay"),
        ("lm_head.weight", 2, "decay"),
        ("score.weight", 2, "decay"),
        ("model.norm.weight", 1, "no_decay"),
    ],
)
def test_group_is_muon_when_a_matrix_lies_in_a_layer(name: str, ndim: int, expected: str) -> None:
    assert group_of(name, ndim, "muon") == expected


def test_groups_are_three_when_the_optimizer_is_muon() -> None:
    groups = parameter_groups(model(), 0.1, optimizer="muon")
    assert [(group.name, group.weight_decay) for group in groups] == [("muon", 0.1), ("decay", 0.1), ("no_decay", 0.0)]
    assert [name for name, _ in groups[1].parameters] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert len(groups[0].parameters) == 2 * 4
    assert sum(len(group.parameters) for group in groups) == len(parameter_shapes(CONFIG))


def test_frozen_parameter_is_left_out_when_grouped() -> None:
    module = model()
    module.model.embed_tokens.weight.requires_grad_(False)
    names = [name for group in parameter_groups(module, 0.1) for name, _ in group.parameters]
    assert "model.embed_tokens.weight" not in names
    assert len(names) == len(parameter_shapes(CONFIG)) - 1


def test_torch_optimizer_accepts_groups_when_converted() -> None:
    groups = parameter_groups(model(), 0.1)
    optimizer = torch.optim.AdamW(torch_parameter_groups(groups), lr=1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [group["name"] for group in optimizer.param_groups] == ["decay", "no_decay"]
    assert optimizer.param_groups[1]["params"][0] is groups[1].parameters[0][1]


def test_group_is_left_out_when_empty() -> None:
    groups = parameter_groups(torch.nn.Linear(2, 2, bias=False), 0.1)
    assert [group["name"] for group in torch_parameter_groups(groups)] == ["decay"]


def test_groups_are_right_when_parameters_are_partitioned_and_shapes_given() -> None:
    module = model()
    expected = [[name for name, _ in group.parameters] for group in parameter_groups(module, 0.1)]
    for parameter in module.parameters():
        parameter.data = torch.empty(0)
    groups = parameter_groups(module, 0.1, shapes=parameter_shapes(CONFIG))
    assert [[name for name, _ in group.parameters] for group in groups] == expected


def test_groups_are_refused_when_parameters_are_partitioned() -> None:
    module = model()
    module.model.embed_tokens.weight.data = torch.empty(0)
    with pytest.raises(ParameterGroupError) as error:
        parameter_groups(module, 0.1)
    assert str(error.value) == (
        "parameter model.embed_tokens.weight has shape (0,): it is empty, probably because it is partitioned "
        "already, and the group follows from the whole shape. Pass shapes=parameter_shapes(config)."
    )
