"""How a conversation is written as text, the same in training, in generation and in Hugging Face's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from data_pipeline.config_rules import STRICT

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Turn:
    """What one side says at a time."""

    role: Role
    content: str
    """Without white space at its ends."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a conversation's text that is made tokens by itself, so that no token crosses its ends."""

    text: str
    is_answer: bool
    """Whether the model is to write it, and the EOS that follows; else it is given."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What stands before and after what each role says. BOS begins a conversation, and EOS ends every answer.

    That EOS is a token which no text contains, so that an answer's end is never mistaken.
    """

    __pydantic_config__ = STRICT

    system_prefix: str = "System:\n"
    """Text before what the system says."""
    system_suffix: str = "\n"
    """Text behind what the system says."""
    user_prefix: str = "User:\n"
    """Text before what the user says."""
    user_suffix: str = "\n"
    """Text behind what the user says."""
    assistant_prefix: str = "Assistant:\n"
    """Text before an answer, whose tokens are made apart from it. Where this ends a line they are those of the whole
    text; elsewhere they may be others, and `checkpoint export` then refuses to write the template."""

    def __post_init__(self) -> None:
        if not self.user_suffix and not self.assistant_prefix:
            raise ValueError(
                "user_suffix and assistant_prefix are both empty: nothing would tell the model where a question ends "
                "and its answer begins. Give one of them some text."
            )

    def segments(self, turns: Sequence[Turn]) -> list[Segment]:
        """Cuts a conversation at the beginning and the end of each answer.

        Args:
            turns: In their order.

        Returns:
            Given text and answers; what is given before an answer ends with `assistant_prefix`.
        """
        found: list[Segment] = []
        given = ""
        for turn in turns:
            if turn.role == "assistant":
                found += [Segment(given + self.assistant_prefix, False), Segment(turn.content, True)]
                given = ""
            else:
                given += self._prefix(turn.role) + turn.content + self._suffix(turn.role)
        return [*found, Segment(given, False)] if given else found

    def prompt_segments(self, turns: Sequence[Turn]) -> list[Segment]:
        """The same of a conversation that the model is to answer: the last segment ends where its answer begins."""
        before = self.segments([*turns, Turn("assistant", "")])
        return before[:-1]

    def text(self, turns: Sequence[Turn]) -> str:
        """The conversation as plain text, without BOS and EOS: what a tokenizer is trained on."""
        return "".join(segment.text + "\n" * segment.is_answer for segment in self.segments(turns))

    def jinja(self, *, control_texts: Sequence[str], answer_lead: str = "") -> str:
        """The same template for `tokenizer_config.json`, where transformers and what builds on it look for it.

        There the text of a conversation is read as a whole, control tokens by their names. A name that stands in what
        somebody says would be taken for the token, so that such a conversation is refused.

        Args:
            control_texts: Names of control tokens.
            answer_lead: What makes an answer's tokens those that it has when it begins a text: a space, where the
                tokenizer puts one in front of every text.
        """
        roles = "[" + ", ".join(map(_literal, ROLES)) + "]"
        names = "[" + ", ".join(map(_literal, control_texts)) + "]"
        content = "(message['content'] | trim)"
        given = "".join(
            f"{{%- elif message['role'] == {_literal(role)} -%}}"
            f"{{{{- {_literal(self._prefix(role))} + {content} + {_literal(self._suffix(role))} -}}}}"
            for role in ROLES
            if role != "assistant"
        )
        return (
            "{{- bos_token -}}"
            "{%- for message in messages -%}"
            f"{{%- if message['role'] not in {roles} -%}}"
            "{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}"
            "{%- endif -%}"
            f"{{%- for name in {names} -%}}"
            "{%- if name in message['content'] -%}"
            "{{- raise_exception('a message holds ' + name + ', which would be read as a control token') -}}"
            "{%- endif -%}{%- endfor -%}"
            "{%- if message['role'] == 'assistant' -%}"
            f"{{{{- {_literal(self.assistant_prefix + answer_lead)} + {content} + eos_token -}}}}"
            f"{given}{{%- endif -%}}{{%- endfor -%}}"
            f"{{%- if add_generation_prompt -%}}{{{{- {_literal(self.assistant_prefix)} -}}}}{{%- endif -%}}"
        )

    def _prefix(self, role: Role) -> str:
        return {"system": self.system_prefix, "user": self.user_prefix, "assistant": self.assistant_prefix}[role]

    def _suffix(self, role: Role) -> str:
        return {"system": self.system_suffix, "user": self.user_suffix, "assistant": ""}[role]


def _literal(text: str) -> str:
    """A string of Jinja, whose escapes are those of JSON as long as characters beyond the BMP stand as they are."""
    return json.dumps(text, ensure_ascii=False)
