"""What `evaluate` says of the tokens that it scored."""

from __future__ import annotations

import pytest

from launcher.commands.evaluate import _scored


@pytest.mark.parametrize(("by_document", "whole"), [(True, "each document"), (False, "the split")])
def test_tokens_are_explained_when_not_all_were_scored(by_document: bool, whole: str) -> None:
    figures = {"loss": 4.0, "perplexity": 54.6, "tokens": 1513, "total_tokens": 1519}
    assert _scored(figures, by_document=by_document, answers_only=False) == (
        f"1,513 scored of 1,519; the first of {whole} has none before it to be predicted from"
    )


def test_tokens_are_said_to_be_those_of_answers_when_nothing_else_was_scored() -> None:
    figures = {"loss": 4.0, "perplexity": 54.6, "tokens": 700, "total_tokens": 1519}
    told = _scored(figures, by_document=True, answers_only=True)
    assert told == "700 scored of 1,519: those of answers, and the end of each"
