"""The choice of a token: filters against Hugging Face's, frequencies, draws that a batch does not change, refusals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.errors import GenerationError
from llm.sampling import SamplingConfig, TokenChooser, candidates, drawn, penalised, prompt_key

PROBABILITY_TOLERANCE = 1e-6
"""fp32 softmax over 50 scores, normalised once or twice."""
LOGITS_V = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()


def chooser(sampling: SamplingConfig, rows: int = 1, vocab_size: int = 5) -> TokenChooser:
    return TokenChooser(sampling, [[0]] * rows, range(rows), vocab_size)


def sample(**settings: Any) -> Counter[int]:
    rows = 1000
    each = chooser(SamplingConfig(**settings), rows)
    return Counter(each.choose(LOGITS_V.expand(rows, -1), list(range(rows))))


def random_scores(rows: int = 4) -> Tensor:
    return 3 * torch.randn(rows, 50, generator=torch.Generator().manual_seed(1))


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
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"min_p": 0.01}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.25, "top_k": 2}, {0, 1}),
        ({"temperature": 0.05}, {0}),
    ],
    ids=str,
)
def test_only_allowed_tokens_come_when_filtered(settings: dict[str, Any], expected: set[int]) -> None:
    assert set(sample(**settings)) == expected


def hugging_face_probabilities(scores_BV: Tensor, sampling: SamplingConfig) -> Tensor:
    process = pytest.importorskip("transformers.generation.logits_process")
    steps = [process.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k is not None:
        steps.append(process.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        steps.append(process.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        steps.append(process.MinPLogitsWarper(sampling.min_p))
    for step in steps:
        scores_BV = step(None, scores_BV)
    return scores_BV.softmax(dim=-1)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.7}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 9, "top_p": 0.9, "min_p": 0.1}],
    ids=str,
)
def test_probabilities_equal_those_of_hugging_face_when_filtered(settings: dict[str, Any]) -> None:
    scores_BV, sampling = random_scores(), SamplingConfig(**settings)
    weights_BC, tokens_BC = candidates(scores_BV, sampling)
    ours_BV = torch.zeros_like(scores_BV).scatter(-1, tokens_BC, weights_BC / weights_BC.sum(dim=-1, keepdim=True))
    expected_BV = hugging_face_probabilities(scores_BV, sampling)
    torch.testing.assert_close(ours_BV, expected_BV, atol=PROBABILITY_TOLERANCE, rtol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize("penalty", [0.8, 1.2, 3.0])
def test_penalty_equals_that_of_hugging_face_when_tokens_were_seen(penalty: float) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    scores_BV = random_scores(2)
    seen = torch.tensor([[3, 3, 40, 7], [0, 1, 2, 49]])
    seen_BV = torch.zeros_like(scores_BV, dtype=torch.bool).scatter(-1, seen, True)
    expected_BV = process.RepetitionPenaltyLogitsProcessor(penalty)(seen, scores_BV)
    assert torch.equal(penalised(scores_BV, seen_BV, penalty), expected_BV)
    assert not torch.equal(expected_BV, scores_BV)


def test_tokens_of_prompt_and_text_are_less_likely_when_penalised() -> None:
    sampling = SamplingConfig(temperature=0, repetition_penalty=10.0)
    each = TokenChooser(sampling, [[0], [1]], keys=[0, 0], vocab_size=3)
    logits_BV = torch.tensor([[3.0, 2.0, 1.0]] * 2)
    assert [each.choose(logits_BV, [0, 1]) for _ in range(3)] == [[1, 0], [2, 2], [0, 0]]


def test_token_is_that_of_a_plain_loop_when_drawn() -> None:
    weights_BC = torch.rand(6, 9, generator=torch.Generator().manual_seed(2))
    weights_BC[:, 5:] = 0
    tokens_BC = torch.arange(54).reshape(6, 9)
    uniforms_B = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.999, 1 - 2.0**-53], dtype=torch.float64)
    expected = []
    for weights, tokens, uniform in zip(weights_BC, tokens_BC, uniforms_B, strict=True):
        left = float(uniform) * float(weights.double().sum())
        for weight, token in zip(weights.double().tolist(), tokens.tolist(), strict=True):
            if weight > left:
                expected.append(token)
                break
            left -= weight
    assert drawn(weights_BC, tokens_BC, uniforms_B).tolist() == expected
    assert all(token % 9 < 5 for token in expected)


def test_next_token_is_drawn_when_the_uniform_number_is_where_one_ends() -> None:
    weights_BC, tokens_BC = torch.tensor([[0.25, 0.25, 0.5]] * 3), torch.tensor([[7, 8, 9]] * 3)
    uniforms_B = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    assert drawn(weights_BC, tokens_BC, uniforms_B).tolist() == [7, 8, 9]


def test_choices_of_a_row_are_the_same_when_others_are_there_or_have_ended() -> None:
    logits_BV, sampling = random_scores(3), SamplingConfig()

    def choices(rows_of_step: list[list[int]]) -> list[int]:
        each = TokenChooser(sampling, [[0]] * 3, keys=[7, 8, 9], vocab_size=50)
        return [each.choose(logits_BV[rows], rows)[rows.index(1)] for rows in rows_of_step]

    alone = choices([[1]] * 12)
    assert len(set(alone)) > 2
    assert choices([[0, 1, 2]] * 4 + [[1, 2]] * 4 + [[1]] * 4) == alone


def test_greedy_choice_leaves_out_tokens_without_text_when_the_model_has_more_rows() -> None:
    assert chooser(SamplingConfig(temperature=0), vocab_size=3).choose(torch.arange(5.0)[None], [0]) == [2]


def test_key_follows_seed_and_prompt() -> None:
    keys = [prompt_key(1, [5, 6]), prompt_key(2, [5, 6]), prompt_key(1, [56]), prompt_key(1, [5, 7])]
    assert len(set(keys)) == 4
    assert prompt_key(1, (5, 6)) == keys[0]


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_choice_is_refused_when_scores_of_a_row_are_not_finite(value: float, said: str) -> None:
    logits_BV = torch.zeros(2, 5)
    logits_BV[1, 3] = value
    with pytest.raises(GenerationError) as error:
        chooser(SamplingConfig(), rows=2).choose(logits_BV, [0, 1])
    assert str(error.value) == (
        f"the model's scores of the next token are not finite (their maximum is {said}): no token can be chosen. Its "
        "training has diverged; take an earlier checkpoint."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: there is nothing to do. Use at least 1."),
        (
            {"repetition_penalty": 0.0},
            "repetition_penalty is 0.0: logits cannot be divided by it. "
            "Use a finite number above 0; 1 means no penalty.",
        ),
        (
            {"repetition_penalty": float("nan")},
            "repetition_penalty is nan: logits cannot be divided by it. "
            "Use a finite number above 0; 1 means no penalty.",
        ),
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
        (
            {"min_p": 0.0},
            "min_p is 0.0: it is a fraction of the likeliest token's probability, above 0 and at most 1. "
            "Use null for all tokens.",
        ),
    ],
    ids=str,
)
def test_sampling_is_refused_when_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError) as error:
        SamplingConfig(**settings)
    assert str(error.value) == message
