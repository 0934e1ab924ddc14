"""What `evaluate` says of the tokens that it scored."""

from __future__ import annotations

import pytest

from launcher.commands.evaluate import _scored


@pytest.mark.parametrize(("by_document", "whole"), [(True, "each document"), (False, "the split")])
def test_tokens_are_explained_when_not_all_were_scored(by_document: bool, whole: str) -> None:
    figures = {"loss": 4.0, "perplexity": 54.6, "tokens": 1513, "total_tokens": 1519}
    assert _scored(figures, by_document=by_document) == (
        f"1,513 scored of 1,519; the first of {whole} has none before it to be predicted from"
    )
