"""Scoring: windows count every token once, batches change nothing, and one window a token says the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.config import ModelConfig
from llm.errors import ScoringError
from llm.initialization import initialize
from llm.scoring import (
    Passage,
    Window,
    continuation_passage,
    encode_pair,
    score_passages,
    score_targets,
    sliding_windows,
    window_passages,
)
from llm.transformer import Transformer

TOLERANCE = 2e-5
"""fp32 through two layers, in batches of other shapes."""
KINDS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "scaled and capped": {"logits_scaling": 2.0, "final_logit_softcapping": 3.0},
    "experts": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


def make_model(**changes: Any) -> Transformer:
    config = ModelConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.2,
        **changes,
    )
    model = Transformer(config, "sdpa")
    initialize(model, config, seed=5)
    return model.eval()


def random_tokens(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 64, count)


def everywhere(tokens_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    row, column = torch.nonzero(torch.ones_like(tokens_BT), as_tuple=True)
    return row, column


def score_alone(model: Transformer, before: np.ndarray, target: int) -> tuple[float, int]:
    """Loss and rank of one token, by a pass over exactly what it may see."""
    with torch.no_grad():
        logits_V = model.logits(torch.from_numpy(before)[None])[0, -1].double()
    loss = -torch.log_softmax(logits_V, 0)[target]
    return float(loss), int((logits_V > logits_V[target]).sum())


@pytest.mark.parametrize(
    ("tokens", "context", "stride", "windows"),
    [
        (0, 4, 4, []),
        (1, 4, 4, []),
        (2, 4, 4, [(0, 1, 1)]),
        (5, 4, 4, [(0, 4, 1)]),
        (6, 4, 4, [(0, 4, 1), (4, 5, 5)]),
        (9, 4, 4, [(0, 4, 1), (4, 8, 5)]),
        (8, 4, 2, [(0, 4, 1), (2, 6, 5), (4, 7, 7)]),
        (7, 4, 1, [(0, 4, 1), (1, 5, 5), (2, 6, 6)]),
        (4, 1, 1, [(0, 1, 1), (1, 2, 2), (2, 3, 3)]),
    ],
)
def test_windows_are_these(tokens: int, context: int, stride: int, windows: list[tuple[int, int, int]]) -> None:
    assert sliding_windows(tokens, context, stride) == [Window(*window) for window in windows]


@given(tokens=st.integers(0, 200), context=st.integers(1, 40), data=st.data())
def test_windows_count_every_token_once_with_the_context_promised(
    tokens: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    windows = sliding_windows(tokens, context, stride)
    targets = [(target, window) for window in windows for target in range(window.first_target, window.stop + 1)]
    assert [target for target, _ in targets] == list(range(1, tokens))
    for target, window in targets:
        assert window.stop - window.start <= context
        assert target - window.start >= min(target, context - stride + 1)


@given(tokens=st.integers(2, 200), context=st.integers(1, 40), data=st.data())
def test_windows_are_those_of_hugging_face(tokens: int, context: int, data: st.DataObject) -> None:
    """The loop of https://huggingface.co/docs/transformers/perplexity, as it stands there."""
    stride = data.draw(st.integers(1, context))
    max_length, previous_end, theirs = context + 1, 0, []
    for begin in range(0, tokens, stride):
        end = min(begin + max_length, tokens)
        theirs.append((begin, end - 1, previous_end))
        previous_end = end
        if end == tokens:
            break
    (begin, stop, _), *others = theirs  # the first token of all is a label there too, and is lost when labels move on
    assert sliding_windows(tokens, context, stride) == [Window(begin, stop, 1), *(Window(*each) for each in others)]


@pytest.mark.parametrize("stride", [0, 5])
def test_stride_is_refused_when_a_token_would_not_count(stride: int) -> None:
    with pytest.raises(ScoringError) as error:
        sliding_windows(10, 4, stride)
    assert str(error.value) == (
        f"the windows' stride is {stride} and they read 4 tokens: tokens between two windows would not be scored, or "
        "the windows would not move on. Use a stride of 1 to 4."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_text_scores_as_with_one_pass_for_each_token(kind: str) -> None:
    model, tokens, context, stride = make_model(**KINDS[kind]), random_tokens(41), 12, 5
    windows = sliding_windows(len(tokens), context, stride)
    scores = score_passages(model, window_passages(tokens, windows), batch_tokens=3 * context)
    losses = np.concatenate([each.losses for each in scores])
    ranks = np.concatenate([each.ranks for each in scores])
    targets = [(target, window) for window in windows for target in range(window.first_target, window.stop + 1)]
    alone = [score_alone(model, tokens[window.start : target], tokens[target]) for target, window in targets]
    np.testing.assert_allclose(losses, [loss for loss, _ in alone], atol=TOLERANCE, rtol=0)
    assert ranks.tolist() == [rank for _, rank in alone]


def test_passages_of_any_lengths_score_as_alone_when_they_share_batches() -> None:
    model, tokens = make_model(), random_tokens(30).tolist()
    passages = [Passage(tokens[at : at + length], scored) for at, length, scored in ((0, 9, 3), (4, 2, 1), (8, 22, 21))]
    for passage, found in zip(passages, score_passages(model, passages, batch_tokens=44), strict=True):
        (alone,) = score_passages(model, [passage], batch_tokens=1)
        assert len(found.losses) == passage.scored
        np.testing.assert_allclose(found.losses, alone.losses, atol=TOLERANCE, rtol=0)
        assert found.log_probability == pytest.approx(-float(alone.losses.sum()), abs=30 * TOLERANCE)


def test_passages_are_read_once_when_only_their_last_tokens_differ() -> None:
    model, read = make_model(), []
    model.model.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    passages = [Passage([3, 5, 9, last], scored) for last, scored in ((1, 1), (2, 2), (7, 3))]
    passages.insert(1, Passage([3, 5, 8, 1], 1))
    found = score_passages(model, passages, batch_tokens=64)
    assert read == [2]
    for passage, scores in zip(passages, found, strict=True):
        first = len(passage.tokens) - passage.scored
        for target in range(first, len(passage.tokens)):
            loss, rank = score_alone(model, np.array(passage.tokens[:target]), passage.tokens[target])
            assert scores.losses[target - first] == pytest.approx(loss, abs=TOLERANCE)
            assert scores.ranks[target - first] == rank


def test_losses_are_those_of_the_model_when_all_targets_count() -> None:
    model, tokens = make_model(), torch.from_numpy(random_tokens(36)).reshape(2, 18)
    documents = torch.tensor([[0] * 7 + [1] * 10, [0] * 17])
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    found = score_targets(model, inputs, everywhere(inputs), targets.flatten(), documents)
    with torch.no_grad():
        sums = model(inputs, targets, None, documents)
    assert found.losses.sum() == pytest.approx(sums.loss_sum.item(), abs=34 * TOLERANCE)


def test_nothing_is_scored_when_no_target_counts() -> None:
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    places = everywhere(tokens[:, :0])
    assert len(score_targets(make_model(), tokens, places, tokens[places]).losses) == 0


def test_target_is_nobodys_first_guess_when_the_scores_are_no_numbers() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    (found,) = score_passages(model, [Passage([1, 2, 3], 2)], batch_tokens=8)
    assert np.isnan(found.log_probability)
    assert not found.greedy


def test_continuation_is_greedy_when_it_is_what_the_model_writes() -> None:
    model = make_model()
    written = [7]
    with torch.no_grad():
        for _ in range(4):
            written.append(int(model.logits(torch.tensor([written]))[0, -1].argmax()))
    good, bad = Passage(written, 4), Passage([*written[:-1], (written[-1] + 1) % 64], 4)
    assert [each.greedy for each in score_passages(model, [good, bad], batch_tokens=64)] == [True, False]


def characters(text: str) -> list[int]:
    """A tokenizer that knows characters, and ` a` as one piece."""
    return [1000 if part == "\0" else ord(part) for part in text.replace(" a", "\0")]


@pytest.mark.parametrize(
    ("context", "continuation", "before", "after"),
    [
        ("b", " a", [1, ord("b")], [1000]),
        ("b ", "a", [1, ord("b")], [1000]),
        ("", "ab", [1], [ord("a"), ord("b")]),
        (" ", "a", [1], [1000]),
        ("b", "", [1, ord("b")], []),
    ],
)
def test_pair_is_cut_where_the_ids_of_the_context_end(
    context: str, continuation: str, before: list[int], after: list[int]
) -> None:
    assert encode_pair(characters, context, continuation, bos=1) == (before, after)


def test_context_loses_its_beginning_when_both_are_too_long() -> None:
    assert continuation_passage([1, 2, 3, 4], [5, 6], context_tokens=3) == Passage([3, 4, 5, 6], 2)
    assert continuation_passage([1, 2], [5, 6], context_tokens=3) == Passage([1, 2, 5, 6], 2)


@pytest.mark.parametrize("continuation", [[], [5, 6, 7, 8]])
def test_continuation_is_refused_when_it_is_empty_or_too_long(continuation: list[int]) -> None:
    with pytest.raises(ScoringError) as error:
        continuation_passage([1], continuation, context_tokens=3)
    assert str(error.value) == (
        f"a continuation of {len(continuation)} tokens is to be scored after 1, and the model reads 3 at once: it "
        "takes at least one of either, and the continuation must fit whole. Shorten the continuation."
    )
