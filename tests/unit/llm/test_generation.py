"""Generation: the cache changes nothing, sampling follows its settings, bad requests are refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from llm.config import ModelConfig
from llm.errors import GenerationError
from llm.generation import SamplingConfig, choose_token, generate
from llm.initialization import initialize
from llm.kv_cache import KeyValueCache
from llm.transformer import Transformer

CACHE_TOLERANCE = 1e-5
"""fp32 through two layers; the cached pass sums in another order."""
PROMPT = [5, 17, 3, 60, 2]
LOGITS_V = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()


def make_model(attention: str = "sdpa") -> Transformer:
    config = ModelConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    model = Transformer(config, attention)
    initialize(model, config, seed=1)
    return model


def sample(**settings: Any) -> Counter[int]:
    generator = torch.Generator().manual_seed(0)
    sampling = SamplingConfig(**settings)
    return Counter(choose_token(LOGITS_V, sampling, generator) for _ in range(1000))


@torch.no_grad()
def greedy_without_cache(model: Transformer, count: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(count):
        tokens.append(int(model.logits(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tokens_equal_those_without_cache_when_greedy(attention: str) -> None:
    model = make_model(attention)
    expected = greedy_without_cache(model, 40)
    assert len(set(expected)) > 5, "a model that repeats itself would prove little"
    assert list(generate(model, PROMPT, SamplingConfig(max_new_tokens=40, temperature=0))) == expected


@pytest.mark.parametrize("parts", [[12], [5, 1, 1, 5], [1] * 12, [4, 8]], ids=str)
@pytest.mark.parametrize("block_tokens", [1, 5, 256])
@torch.no_grad()
def test_logits_equal_one_pass_when_sequence_comes_in_parts(parts: list[int], block_tokens: int) -> None:
    model = make_model()
    tokens = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    cache = KeyValueCache(2, block_tokens=block_tokens)
    cached = [model.logits(part, cache=cache) for part in tokens.split(parts, dim=1)]
    assert cache.length == 12
    torch.testing.assert_close(
        torch.cat(cached, dim=1), model.logits(tokens), atol=CACHE_TOLERANCE, rtol=CACHE_TOLERANCE
    )


def test_model_reads_one_position_at_a_time_when_prompt_is_done() -> None:
    model, lengths = make_model(), []
    model.model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    list(generate(model, PROMPT, SamplingConfig(max_new_tokens=4)))
    assert lengths == [5, 1, 1, 1]


def test_token_is_yielded_before_the_next_is_computed_when_streamed() -> None:
    model, passes = make_model(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    stream = generate(model, PROMPT, SamplingConfig(max_new_tokens=4))
    next(stream)
    assert len(passes) == 1


def test_stream_ends_without_it_when_stop_token_is_chosen() -> None:
    model, sampling = make_model(), SamplingConfig(max_new_tokens=40, temperature=0)
    tokens = list(generate(model, PROMPT, sampling))
    expected = tokens[: tokens.index(tokens[7])]
    assert list(generate(model, PROMPT, sampling, stop_token=tokens[7])) == expected


def test_text_follows_the_seed_when_sampled() -> None:
    model = make_model()

    def text(seed: int) -> list[int]:
        return list(generate(model, PROMPT, SamplingConfig(max_new_tokens=20, seed=seed)))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_gradient_mode_is_the_callers_when_between_tokens() -> None:
    stream = generate(make_model(), PROMPT, SamplingConfig(max_new_tokens=2))
    next(stream)
    assert torch.is_grad_enabled()


def test_frequencies_follow_probabilities_when_sampled_plainly() -> None:
    counts = sample()
    for token, probability in enumerate([0.5, 0.2, 0.15, 0.1, 0.05]):
        assert counts[token] == pytest.approx(1000 * probability, abs=5 * (1000 * probability) ** 0.5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 0.0}, {0}),
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.01}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.8}, {0, 1, 2}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 2, "top_p": 0.99}, {0, 1}),
        ({"temperature": 0.05}, {0}),
    ],
    ids=str,
)
def test_only_allowed_tokens_come_when_filtered(settings: dict[str, Any], expected: set[int]) -> None:
    assert set(sample(**settings)) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: there is nothing to do. Use at least 1."),
        (
            {"temperature": -0.5},
            "temperature is -0.5: logits cannot be divided by it. "
            "Use a finite number of at least 0; 0 means the likeliest token.",
        ),
        (
            {"temperature": float("nan")},
            "temperature is nan: logits cannot be divided by it. "
            "Use a finite number of at least 0; 0 means the likeliest token.",
        ),
        ({"top_k": 0}, "top_k is 0: no token would be left. Use at least 1, or null for all."),
        (
            {"top_p": 1.5},
            "top_p is 1.5: it is a sum of probabilities, above 0 and at most 1. Use null for all tokens.",
        ),
    ],
    ids=str,
)
def test_sampling_is_refused_when_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError) as error:
        SamplingConfig(**settings)
    assert str(error.value) == message


def test_prompt_is_refused_at_once_when_empty() -> None:
    with pytest.raises(GenerationError) as error:
        generate(make_model(), [], SamplingConfig())
    assert str(error.value) == (
        "the prompt has no tokens: the model needs one to predict the next. Begin with the tokenizer's BOS token."
    )


def test_prompt_is_refused_at_once_when_outside_the_vocabulary() -> None:
    with pytest.raises(GenerationError) as error:
        generate(make_model(), [1, 64], SamplingConfig())
    assert str(error.value) == (
        "prompt token 64 at position 1 is outside the model's vocabulary of 64. "
        "Encode the prompt with the tokenizer that the model was trained with."
    )
