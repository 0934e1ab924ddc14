"""Proof that an exported chat template asks a model as it was asked in training."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.errors import ProofError


@dataclass(frozen=True)
class ExpectedChat:
    """A conversation, and the ids that the model was, or would be, trained on."""

    messages: Sequence[tuple[str, str]]
    """(role, content) in order; the last is an answer."""
    ids: Sequence[int]
    """Of the whole, control tokens among them."""
    prompt_ids: Sequence[int]
    """Of what stands before the last answer."""


def prove_chat_template(directory: Path, chats: Iterable[ExpectedChat]) -> int:
    """Compare what transformers' `apply_chat_template` gives in a directory with what the model was trained on.

    Args:
        directory: The export, its tokenizer with a chat template.
        chats: To compare on, each as a whole and as a prompt.

    Returns:
        Conversations compared.

    Raises:
        ProofError: Some differ, or transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ProofError(
            f"the chat template in {directory} was not compared with transformers, which is not installed here. "
            "Install it (python -m pip install 'longhaul[export]')."
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(directory, model_max_length=sys.maxsize)  # else it warns of long ones
    compared = 0
    for number, chat in enumerate(chats):
        messages = [{"role": role, "content": content} for role, content in chat.messages]
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        for what, theirs, ours in (("", whole, chat.ids), ("the prompt of ", prompt, chat.prompt_ids)):
            if theirs != list(ours):
                first = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
                raise ProofError(
                    f"the chat template in {directory} gives other ids than the model was trained on: in {what}"
                    f"conversation {number}, token {first}, {theirs[first : first + 4]} instead of "
                    f"{list(ours[first : first + 4])}. Export without the template, or train with one whose prefixes "
                    "end with a line end, and a tokenizer of `data tokenizer`."
                )
        compared += 1
    return compared
