"""The chat template of a run's conversations. Its checkpoints carry it, so that whoever has one can ask its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from data_pipeline.chat_template import ChatTemplate, Role, Turn
from data_pipeline.chat_tokens import encode_conversation, encode_prompt
from data_pipeline.plan import DataPlan, shared_chat_template
from data_pipeline.tokenizer import Tokenizer
from llm.hugging_face.chat import ExpectedChat

CHAT_TEMPLATE = "chat_template"
"""Key in the run's part of a manifest; absent where the data hold no conversations, or several templates."""
_ROLES: tuple[tuple[Role, ...], ...] = (
    ("user", "assistant"),
    ("system", "user", "assistant", "user", "assistant"),
)
"""Of the conversations that a template is compared on."""


def chat_facts(plan: DataPlan) -> dict[str, Any]:
    """What a manifest says of the template."""
    template = shared_chat_template(plan.datasets)
    return {} if template is None else {CHAT_TEMPLATE: asdict(template)}


def chat_template_of(run: Mapping[str, Any]) -> ChatTemplate | None:
    """The template that the run's part of a manifest names; None where the run was trained on text."""
    said = run.get(CHAT_TEMPLATE)
    return None if said is None else ChatTemplate(**said)


def example_chats(
    tokenizer: Tokenizer, template: ChatTemplate, texts: Sequence[str], control_texts: Sequence[str]
) -> Iterator[ExpectedChat]:
    """Conversations made of texts: of two turns, and of five, the system's first.

    Texts that hold the name of a control token are left out: the exported template refuses them.
    """
    said = [text.strip() for text in texts if text.strip() and not any(name in text for name in control_texts)]
    for at in range(len(said)):
        around = [said[(at + step) % len(said)] for step in range(5)]
        for roles in _ROLES:
            turns = [Turn(role, content) for role, content in zip(roles, around, strict=False)]
            yield ExpectedChat(
                messages=[(turn.role, turn.content) for turn in turns],
                ids=encode_conversation(tokenizer, template, turns).tokens.tolist(),
                prompt_ids=encode_prompt(tokenizer, template, turns[:-1]),
            )
