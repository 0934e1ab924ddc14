"""Questions put to a model, against sums of log-probabilities taken a token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.inference import LoadedModel
from launcher.errors import UsageError
from launcher.question_file import ChoiceQuestion, TextPair
from launcher.questions import answer_choices, compare_pairs
from llm.metrics.language import wilson_interval
from llm.scoring import TargetScores

WORDS = ("tea", "she had", "nobody in the house would hear", "é", "it twice before", "truth")


def log_probability(loaded: LoadedModel, context: str, continuation: str) -> float:
    """Of the tokens that the continuation adds, each given all before it; the context keeps its end where too long."""
    tokenizer = loaded.tokenizer
    before = [tokenizer.bos_id, *tokenizer.encode(context.rstrip()).tolist()]
    whole = [tokenizer.bos_id, *tokenizer.encode(context + continuation).tolist()]
    added = len(whole) - len(before)
    whole = whole[-(loaded.data.seq_len + 1) :]
    total = 0.0
    for target in range(len(whole) - added, len(whole)):
        with torch.no_grad():
            logits_V = loaded.model.logits(torch.tensor([whole[:target]]))[0, -1]
        total += torch.log_softmax(logits_V.double(), 0)[whole[target]].item()
    return total


def question(number: int) -> ChoiceQuestion:
    rng = np.random.default_rng(number)
    context = ["", "It was a truth that", "before tea ", "She had said it twice. " * 12][number % 4]
    count = 2 + number % 3
    return ChoiceQuestion(
        where=f"q.jsonl, line {number}",
        context=context,
        choices=tuple(WORDS[choice] for choice in rng.permutation(len(WORDS))[:count]),
        answer=int(rng.integers(count)),
        delimiter=["", " "][number % 2],
        group=[None, "a", "b"][number % 3],
    )


QUESTIONS = [question(number) for number in range(24)]


def test_choices_are_answered_as_by_sums_over_single_tokens(untrained: LoadedModel) -> None:
    right, right_by_bytes = [], []
    for each in QUESTIONS:
        sums = [log_probability(untrained, each.context, each.delimiter + choice) for choice in each.choices]
        right.append(np.argmax(sums) == each.answer)
        per_byte = [value / len(choice.encode()) for value, choice in zip(sums, each.choices, strict=True)]
        right_by_bytes.append(np.argmax(per_byte) == each.answer)
    found = answer_choices(untrained, QUESTIONS)
    assert (found["accuracy"], found["accuracy_per_byte"]) == (np.mean(right), np.mean(right_by_bytes))
    assert right != right_by_bytes
    for name in (None, "a", "b"):
        (group,) = [each for each in found["groups"] if each["group"] == name]
        assert group["accuracy"] == np.mean([hit for hit, of in zip(right, QUESTIONS, strict=True) if of.group == name])


def test_sums_are_divided_by_bytes_and_not_by_characters(
    untrained: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = [TargetScores(np.array([value], np.float32), np.zeros(1, np.int64)) for value in (4.0, 3.0)]
    monkeypatch.setattr("cluster.evaluation.language.score_continuations", lambda loaded, pairs: sums)
    asked = ChoiceQuestion(where="", context="", choices=("éé", "ab"), answer=0)  # -1 and -1.5 nats a byte
    found = answer_choices(untrained, [asked])
    assert (found["accuracy"], found["accuracy_per_byte"]) == (0, 1)


def test_figures_count_questions_and_say_what_guessing_would_reach(untrained: LoadedModel) -> None:
    found = answer_choices(untrained, QUESTIONS)
    assert found["questions"] == 24 == sum(group["questions"] for group in found["groups"])
    assert found["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert found["accuracy_interval"] == wilson_interval(round(24 * found["accuracy"]), 24)


@pytest.mark.parametrize(("read", "truncated"), [(31, 0), (32, 0), (33, 1)])
def test_context_is_truncated_when_the_model_would_read_more_than_it_can(
    untrained: LoadedModel, read: int, truncated: int
) -> None:
    """Each `z` is a byte and a token; the beginning-of-text token is read, and the choice's is not."""
    asked = ChoiceQuestion(where="", context="z" * (read - 1), choices=("z", "x"), answer=0, delimiter="")
    assert answer_choices(untrained, [asked])["truncated"] == truncated


def test_groups_are_left_out_when_no_question_has_one(untrained: LoadedModel) -> None:
    alone = [ChoiceQuestion(where="", context="a", choices=("b", "c"), answer=0)]
    assert "groups" not in answer_choices(untrained, alone)


def test_pairs_are_compared_as_by_sums_over_single_tokens(untrained: LoadedModel) -> None:
    pairs = [
        TextPair(where=f"p.jsonl, line {number}", good=f"{WORDS[number]} and {word}", bad=f"{word} and {WORDS[number]}")
        for number in range(6)
        for word in ("tea", "house", "nobody in")
    ]
    expected = [log_probability(untrained, "", each.good) > log_probability(untrained, "", each.bad) for each in pairs]
    found = compare_pairs(untrained, pairs)
    assert found == {
        "compared": 18,
        "accuracy": np.mean(expected),
        "accuracy_interval": wilson_interval(sum(expected), 18),
        "chance": 0.5,
    }
    assert 0 < found["accuracy"] < 1


def test_text_is_refused_when_the_model_cannot_read_it_whole(untrained: LoadedModel) -> None:
    pair = TextPair(where="--pairs p.jsonl, line 7", good="tea", bad="é" * 20)
    with pytest.raises(UsageError) as error:
        compare_pairs(untrained, [pair])
    assert str(error.value) == (
        "--pairs p.jsonl, line 7: bad has 40 tokens, and the model reads 32 at once: a text is scored whole or not at "
        "all. Shorten it, or remove the line."
    )


def test_choice_is_refused_when_it_adds_no_token(untrained: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a tokenizer that joins `n` and `t` to one piece."""
    monkeypatch.setattr(untrained.tokenizer, "encode", lambda text: np.array([7] * bool(text)))
    asked = ChoiceQuestion(where="--choices q.jsonl, line 2", context="n", choices=("t", "o"), answer=0, delimiter="")
    with pytest.raises(UsageError) as error:
        answer_choices(untrained, [asked])
    assert str(error.value) == (
        "--choices q.jsonl, line 2: choice 0 adds no token to its context: the run's tokenizer joins them to one, and "
        "there is nothing to score. Set `delimiter`, or remove the line."
    )
