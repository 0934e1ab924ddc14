"""Initial values depend on seed and name, and on nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from llm.accounting import parameter_shapes
from llm.config import ModelConfig
from llm.errors import InitializationError
from llm.initialization import initial_value, initialize
from llm.transformer import Transformer

CONFIG = ModelConfig(vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, qk_norm=True)
DEVIATION_TOLERANCE = 0.05
"""The sample deviation of at least 4,096 numbers is off by 1.1 % (one sigma)."""
PINNED = [-0.014410958, 0.014173939, 0.00617105, -0.0066834963]
"""First values of one embedding: a change would alter every run that starts from a seed."""


def test_value_is_the_same_when_asked_for_in_another_order() -> None:
    shapes = parameter_shapes(CONFIG)
    forwards = {name: initial_value(name, shape, CONFIG, 7) for name, shape in shapes.items()}
    torch.rand(3)
    backwards = {name: initial_value(name, shapes[name], CONFIG, 7) for name in reversed(shapes)}
    assert all(torch.equal(forwards[name], backwards[name]) for name in shapes)


def test_value_differs_when_seed_or_name_differs() -> None:
    def value(layer: int, seed: int) -> torch.Tensor:
        return initial_value(f"model.layers.{layer}.mlp.up_proj.weight", (4, 4), CONFIG, seed)

    assert not torch.equal(value(0, 1), value(1, 1))
    assert not torch.equal(value(0, 1), value(0, 2))


def test_value_is_pinned_when_torch_is_upgraded() -> None:
    value = initial_value("model.embed_tokens.weight", (300, 64), CONFIG, 1234)
    expected = torch.tensor(PINNED)
    torch.testing.assert_close(value[0, :4], expected, atol=1e-7, rtol=1e-6)


def test_global_generator_is_untouched_when_values_are_drawn() -> None:
    before = torch.get_rng_state()
    initial_value("lm_head.weight", (8, 8), CONFIG, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", 0.02),
        ("lm_head.weight", 0.02),
        ("model.layers.1.self_attn.q_proj.weight", 0.02),
        ("model.layers.1.mlp.gate_proj.weight", 0.02),
        ("model.layers.1.self_attn.o_proj.weight", 0.02 / math.sqrt(6)),
        ("model.layers.1.mlp.down_proj.weight", 0.02 / math.sqrt(6)),
    ],
)
def test_matrix_has_its_deviation_when_drawn(name: str, expected: float) -> None:
    value = initial_value(name, (64, 128), CONFIG, 3)
    assert value.dtype == torch.float32
    assert float(value.std()) == pytest.approx(expected, rel=DEVIATION_TOLERANCE)
    assert abs(float(value.mean())) < DEVIATION_TOLERANCE * expected


@pytest.mark.parametrize("norm", ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm"])
def test_scale_is_one_when_a_norm(norm: str) -> None:
    assert torch.equal(initial_value(f"model.layers.0.{norm}.weight", (16,), CONFIG, 3), torch.ones(16))


def test_module_holds_the_values_when_initialized() -> None:
    model = Transformer(CONFIG, "sdpa").to(torch.bfloat16)
    initialize(model, CONFIG, 5)
    for name, parameter in model.named_parameters():
        expected = initial_value(name, tuple(parameter.shape), CONFIG, 5)
        assert torch.equal(parameter, expected.bfloat16())


def test_vector_is_refused_when_it_has_no_rule() -> None:
    with pytest.raises(InitializationError) as error:
        initial_value("score.scale", (3,), CONFIG, 0)
    assert str(error.value) == (
        "parameter score.scale has shape (3,): only matrices, biases, and scales whose name ends in norm.weight, "
        "have an initial value. Rename it, or add its rule to llm/initialization.py."
    )


def test_module_is_refused_when_it_has_no_memory() -> None:
    with torch.device("meta"):
        model = Transformer(CONFIG, "sdpa")
    with pytest.raises(InitializationError) as error:
        initialize(model, CONFIG, 0)
    assert str(error.value) == (
        "parameter model.embed_tokens.weight is on the meta device: it has a shape and no memory to hold a "
        "value. Call model.to_empty(device=...) first."
    )
