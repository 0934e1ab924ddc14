"""Conversations as tokens: for training with the mask of what is to be learned, for generation up to the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.chat_template import ChatTemplate, Segment, Turn
from data_pipeline.tokenizer import Tokenizer

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ChatTokens:
    """A conversation's tokens."""

    tokens: Int32Array
    """BOS, then the segments, EOS behind every answer. Shape: (tokens,)."""
    answer_mask: npt.NDArray[np.uint8]
    """1 where the model is to write the token: answers and the EOS behind them. Shape: (tokens,)."""


def join_segments(
    segments: Sequence[Segment], encoded: Sequence[Int32Array], *, bos_id: int, eos_id: int
) -> ChatTokens:
    """Puts the tokens of a conversation's segments together.

    Args:
        segments: Of `ChatTemplate.segments`.
        encoded: Token ids of each.
        bos_id: Token that begins a document.
        eos_id: Token that ends an answer.
    """
    parts: list[Int32Array] = [np.array([bos_id], dtype=np.int32)]
    answers = [0]
    for segment, ids in zip(segments, encoded, strict=True):
        parts.append(ids)
        answers += [int(segment.is_answer)] * len(ids)
        if segment.is_answer:
            parts.append(np.array([eos_id], dtype=np.int32))
            answers.append(1)
    return ChatTokens(np.concatenate(parts), np.array(answers, dtype=np.uint8))


def encode_conversation(tokenizer: Tokenizer, template: ChatTemplate, turns: Sequence[Turn]) -> ChatTokens:
    """Encodes one conversation as a build does."""
    return _encode(tokenizer, template.segments(turns))


def encode_prompt(tokenizer: Tokenizer, template: ChatTemplate, turns: Sequence[Turn]) -> list[int]:
    """Encodes a conversation that the model is to answer: exactly the tokens that stand before the answer in training.

    Args:
        tokenizer: The model's.
        template: That its conversations were written with.
        turns: What was said so far; white space at their ends is removed, as in training.
    """
    stripped = [Turn(turn.role, turn.content.strip()) for turn in turns]
    ids: list[int] = _encode(tokenizer, template.prompt_segments(stripped)).tokens.tolist()
    return ids


def _encode(tokenizer: Tokenizer, segments: Sequence[Segment]) -> ChatTokens:
    encoded = tokenizer.encode_batch([segment.text for segment in segments])
    return join_segments(segments, encoded, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
