"""Questions put to a model: every choice is scored, and the likeliest is its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launcher.errors import UsageError

if TYPE_CHECKING:
    from cluster.inference import LoadedModel
    from launcher.question_file import ChoiceQuestion, TextPair
    from llm.scoring import TargetScores


_Ids = tuple[list[int], list[int]]
"""Token ids of a context and of what is scored after it."""


def answer_choices(loaded: LoadedModel, questions: Sequence[ChoiceQuestion]) -> dict[str, Any]:
    """How often the right choice is the likeliest after its context.

    A context for which the model has no room beside a choice loses its beginning there, as in lm-eval.

    Args:
        loaded: Model and its tokenizer.
        questions: At least one.

    Returns:
        questions: How many.
        truncated: In how many of them a context lost its beginning.
        accuracy: Share in which the right choice has the greatest sum of log-probabilities (lm-eval's `acc`), with
            accuracy_interval.
        accuracy_per_byte: The same with each sum divided by the UTF-8 bytes of its choice (lm-eval's `acc_bytes`; its
            `acc_norm` divides by characters), with accuracy_per_byte_interval.
        chance: What guessing would reach.
        groups: All of these for each `group`, where any question has one.

        Intervals are Wilson's of 95 %.

    Raises:
        UsageError: A choice does not fit into the model, or adds no token to its context; names the line.
    """
    from llm.metrics.language import likeliest

    requests = [
        _encoded(loaded, question.context, question.delimiter + choice, f"{question.where}: choice {number}")
        for question in questions
        for number, choice in enumerate(question.choices)
    ]
    scores = iter(_scores(loaded, requests))
    lengths = iter([len(context) + len(continuation) for context, continuation in requests])
    outcomes = []
    for question in questions:
        sums = [next(scores).log_probability for _ in question.choices]
        sizes = [len(choice.encode()) for choice in question.choices]
        outcomes.append(
            {
                "group": question.group,
                "truncated": max([next(lengths) for _ in question.choices]) > loaded.context_tokens + 1,
                "accuracy": likeliest(sums) == question.answer,
                "accuracy_per_byte": likeliest(sums, sizes) == question.answer,
                "chance": 1 / len(question.choices),
            }
        )
    return _grouped(outcomes, "questions", ("accuracy", "accuracy_per_byte"))


def compare_pairs(loaded: LoadedModel, pairs: Sequence[TextPair]) -> dict[str, Any]:
    """How often the good text of a pair is likelier than the bad one, both from their beginning, without an end.

    Args:
        loaded: Model and its tokenizer.
        pairs: At least one.

    Returns:
        compared: How many.
        accuracy: Share in which the log-probability of the good text is greater (BLiMP, arXiv:1912.00582), with
            accuracy_interval, Wilson's of 95 %.
        chance: What guessing would reach.
        groups: All of these for each `group`, where any pair has one.

    Raises:
        UsageError: A text does not fit into the model; names the line.
    """
    requests = [
        _encoded(loaded, "", text, f"{pair.where}: {name}")
        for pair in pairs
        for name, text in (("good", pair.good), ("bad", pair.bad))
    ]
    scores = [score.log_probability for score in _scores(loaded, requests)]
    outcomes = [
        {"group": pair.group, "accuracy": good > bad, "chance": 0.5}
        for pair, good, bad in zip(pairs, scores[::2], scores[1::2], strict=True)
    ]
    return _grouped(outcomes, "compared", ("accuracy",))


def _encoded(loaded: LoadedModel, context: str, continuation: str, where: str) -> _Ids:
    from llm.scoring import encode_pair

    tokenizer, room = loaded.tokenizer, loaded.context_tokens
    before, after = encode_pair(lambda text: tokenizer.encode(text).tolist(), context, continuation, tokenizer.bos_id)
    if not after:
        raise UsageError(
            f"{where} adds no token to its context: the run's tokenizer joins them to one, and there is nothing to "
            "score. Set `delimiter`, or remove the line."
        )
    if len(after) > room:
        raise UsageError(
            f"{where} has {len(after)} tokens, and the model reads {room} at once: a text is scored whole or not at "
            "all. Shorten it, or remove the line."
        )
    return before, after


def _scores(loaded: LoadedModel, requests: Sequence[_Ids]) -> list[TargetScores]:
    from cluster.evaluation.language import score_continuations

    return score_continuations(loaded, requests)


def _grouped(outcomes: Sequence[dict[str, Any]], counted: str, measures: Sequence[str]) -> dict[str, Any]:
    """Figures of all outcomes and, where any has a group, of each group in the order of its first."""
    figures = _figures(outcomes, counted, measures)
    names = list(dict.fromkeys(outcome["group"] for outcome in outcomes))
    if names != [None]:
        figures["groups"] = [
            {"group": name, **_figures([each for each in outcomes if each["group"] == name], counted, measures)}
            for name in names
        ]
    return figures


def _figures(outcomes: Sequence[dict[str, Any]], counted: str, measures: Sequence[str]) -> dict[str, Any]:
    from llm.metrics.language import Share

    figures: dict[str, Any] = {counted: len(outcomes)}
    if "truncated" in outcomes[0]:
        figures["truncated"] = sum(outcome["truncated"] for outcome in outcomes)
    for measure in measures:
        share = Share(right=sum(outcome[measure] for outcome in outcomes), asked=len(outcomes))
        figures[measure], figures[f"{measure}_interval"] = share.value, share.interval
    figures["chance"] = sum(outcome["chance"] for outcome in outcomes) / len(outcomes)
    return figures
