"""What a depth comes to, by table, and in what direction it goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config import ModelConfig
from llm.scaling import (
    SHAPE_FIELDS,
    batch_sequences,
    compute_optimal_tokens,
    model_shape,
    peak_learning_rate,
    scaling_parameters,
)

DEPTHS = range(1, 65)
EVEN_WIDTHS = st.integers(1, 300).map(lambda half: 2 * half)


def model(depth: int, **stated: int | None) -> ModelConfig:
    return ModelConfig(vocab_size=1000, **model_shape(depth, stated))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("depth", "width", "heads", "hidden", "parameters"),
    [
        (1, 128, 1, 384, 213_376),
        (4, 256, 2, 768, 3_410_176),
        (12, 768, 6, 2048, 84_953_856),  # GPT-2 small: 12 layers of 768, 85 M without embeddings
        (20, 1280, 10, 3456, 396_545_280),
        (64, 4096, 32, 11008, 12_952_539_136),  # width, heads and feed-forward of Llama 2 7B
    ],
)
def test_shape_follows_the_table(depth: int, width: int, heads: int, hidden: int, parameters: int) -> None:
    assert model_shape(depth, {}) == {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 128,
        "intermediate_size": hidden,
    }
    assert scaling_parameters(model(depth)) == parameters


def test_parameters_do_not_count_the_vocabulary() -> None:
    shape = model_shape(4, {})
    sizes = {
        scaling_parameters(ModelConfig(vocab_size=size, tie_word_embeddings=tied, **shape))  # type: ignore[arg-type]
        for size in (1, 50_000)
        for tied in (True, False)
    }
    assert len(sizes) == 1


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_gives_a_larger_model_than_the_one_before(depth: int) -> None:
    larger, smaller = model(depth + 1), model(depth)
    assert scaling_parameters(larger) > scaling_parameters(smaller)
    for name in SHAPE_FIELDS:
        assert getattr(larger, name) >= getattr(smaller, name)


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_trains_longer_in_no_smaller_batches_at_no_higher_rate(depth: int) -> None:
    smaller, larger = (scaling_parameters(model(each)) for each in (depth, depth + 1))
    less, more = compute_optimal_tokens(smaller), compute_optimal_tokens(larger)
    assert more > less
    assert batch_sequences(more, 256) >= batch_sequences(less, 256)
    assert peak_learning_rate(larger, more) <= peak_learning_rate(smaller, less)


@given(
    depth=st.integers(1, 64),
    width=EVEN_WIDTHS,
    heads=st.integers(1, 16),
    head_dim=st.integers(1, 100).map(lambda half: 2 * half),
    hidden=st.integers(1, 900),
    named=st.sets(st.sampled_from(["hidden_size", "num_attention_heads", "head_dim", "intermediate_size"])),
)
def test_shape_is_valid_and_keeps_what_is_stated(
    depth: int, width: int, heads: int, head_dim: int, hidden: int, named: set[str]
) -> None:
    every = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": hidden,
    }
    stated: dict[str, int | None] = {name: every[name] for name in named}
    shape = model_shape(depth, stated)
    assert {name: shape[name] for name in named} == stated
    assert set(shape) == set(SHAPE_FIELDS)
    assert model(depth, **stated).num_hidden_layers == depth


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 12])
def test_query_heads_are_whole_groups_when_key_value_heads_are_stated(groups: int) -> None:
    shape = model(20, num_key_value_heads=groups)
    assert shape.num_attention_heads % groups == 0
    assert shape.num_key_value_heads == groups


def test_tokens_are_twenty_a_parameter() -> None:
    assert compute_optimal_tokens(70_000_000_000) == 1_400_000_000_000  # Chinchilla's own


@pytest.mark.parametrize(
    ("tokens", "seq_len", "sequences"),
    [
        (100_000_000_000, 2048, 512),  # 0.58 * 1e11^0.571 = 1.11 M tokens: 544 sequences
        (1_000_000_000, 2048, 32),  # 80,138 tokens: 39 sequences
        (1_000_000_000, 1, 65_536),
        (1_000_000, 8192, 1),  # 1,548 tokens are no whole sequence
    ],
)
def test_batch_is_the_nearest_power_of_two_of_the_step_laws(tokens: int, seq_len: int, sequences: int) -> None:
    assert batch_sequences(tokens, seq_len) == sequences


@pytest.mark.parametrize(
    ("parameters", "tokens", "rate"),
    [
        (1_000_000_000, 100_000_000_000, 0.00163),
        (440_000_000, 10_000_000_000, 0.00145),  # 1.4e-3, 3.2e-4: as others who apply the law state them
        (3_650_000_000, 10_000_000_000, 0.00032),
        (7_000_000_000, 140_000_000_000, 0.000452),
        (200_000, 4_000_000, 0.003),  # the law would ask for 0.0316
    ],
)
def test_rate_is_the_step_laws(parameters: int, tokens: int, rate: float) -> None:
    assert peak_learning_rate(parameters, tokens) == rate
