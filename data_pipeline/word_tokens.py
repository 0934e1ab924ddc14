"""Tokens of a document as a dataset frames it, and where the words end in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import CorpusError
from data_pipeline.raw_document import Word
from data_pipeline.tokenizer import Tokenizer


def framed(ids: npt.NDArray[Any], tokenizer: Tokenizer) -> npt.NDArray[Any]:
    """Returns BOS, the tokens, EOS. Shape: (tokens + 2,)."""
    return np.concatenate(([tokenizer.bos_id], ids, [tokenizer.eos_id]))


def framed_text(text: str, tokenizer: Tokenizer) -> npt.NDArray[Any]:
    """Returns the tokens of a text as a document of a dataset has them: BOS, text, EOS. Shape: (tokens,)."""
    return framed(tokenizer.encode(text), tokenizer)


def framed_words(words: Sequence[Word], tokenizer: Tokenizer, where: str) -> tuple[npt.NDArray[Any], list[int]]:
    """Returns the tokens of a document whose words are labelled, and the place of each word's last one.

    Each word is encoded by itself, so that no piece belongs to two of them.

    Args:
        words: At least one.
        tokenizer: The model.
        where: Names the document in messages.

    Raises:
        CorpusError: A word gives no token.
    """
    before = [False, *(word.space_after for word in words[:-1])]
    spelled = [
        " " + word.text if space and not tokenizer.adds_space else word.text
        for word, space in zip(words, before, strict=True)
    ]
    encoded = tokenizer.encode_batch(spelled)
    for word, ids in zip(words, encoded, strict=True):
        if not len(ids):
            raise CorpusError(
                f"{where}: the word {word.text!r} gives no token, so that its label has no place. Mend or remove it."
            )
    ends: list[int] = np.cumsum([len(ids) for ids in encoded]).tolist()  # counted with BOS before them
    return framed(np.concatenate(encoded), tokenizer), ends
