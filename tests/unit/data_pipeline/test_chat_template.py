"""Conversations as text: cut at answers, the same in Jinja."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_pipeline.chat_template import ROLES, ChatTemplate, Segment, Turn

TURNS = st.lists(
    st.builds(Turn, st.sampled_from(ROLES), st.text(max_size=20).map(str.strip)),
    min_size=1,
    max_size=6,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TEMPLATES = st.builds(
    ChatTemplate,
    system_prefix=TEXTS,
    system_suffix=TEXTS,
    user_prefix=TEXTS,
    user_suffix=TEXTS.map(lambda text: text + "."),
    assistant_prefix=TEXTS,
)
TALK = [Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye")]


def rendered(template: str, turns: list[Turn], **given: Any) -> str:
    """What transformers makes of a template: its environment, and its names for control tokens."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return environment.from_string(template).render(messages=messages, bos_token="<s>", eos_token="</s>", **given)


def test_segments_part_what_is_given_from_answers() -> None:
    assert ChatTemplate().segments(TALK) == [
        Segment("System:\nBe brief.\nUser:\nHi\nAssistant:\n", False),
        Segment("Hello", True),
        Segment("User:\nBye\n", False),
    ]


def test_prompt_ends_where_the_answer_begins() -> None:
    assert ChatTemplate().prompt_segments(TALK)[-1] == Segment("User:\nBye\nAssistant:\n", False)


@given(TEMPLATES, TURNS)
def test_prompt_is_what_stands_before_the_answer_in_training(template: ChatTemplate, turns: list[Turn]) -> None:
    answered = template.segments([*turns, Turn("assistant", "so")])
    assert template.prompt_segments(turns) == answered[:-1]
    assert answered[-1] == Segment("so", True)


@given(TEMPLATES, TURNS, st.booleans())
def test_jinja_renders_the_segments_for_any_template(template: ChatTemplate, turns: list[Turn], asks: bool) -> None:
    segments = template.prompt_segments(turns) if asks else template.segments(turns)
    expected = "<s>" + "".join(segment.text + "</s>" * segment.is_answer for segment in segments)
    written = template.jinja(control_texts=["<s>", "</s>"])
    turns = [turn for turn in turns if "<s>" not in turn.content]
    assert rendered(written, turns, add_generation_prompt=asks) == expected


def test_jinja_puts_the_lead_before_each_answer() -> None:
    written = ChatTemplate().jinja(control_texts=[], answer_lead=" ")
    assert rendered(written, TALK[1:3]) == "<s>User:\nHi\nAssistant:\n Hello</s>"


def test_jinja_removes_white_space_around_what_is_said() -> None:
    written = ChatTemplate().jinja(control_texts=[])
    assert rendered(written, [Turn("user", " \n Hi\t")]) == "<s>User:\nHi\n"


def test_jinja_refuses_a_role_that_no_training_has_seen() -> None:
    with pytest.raises(jinja2.TemplateError, match="roles are system, user and assistant, not tool"):
        rendered(ChatTemplate().jinja(control_texts=[]), [Turn("tool", "4")])  # type: ignore[arg-type]


def test_jinja_refuses_the_name_of_a_control_token() -> None:
    with pytest.raises(jinja2.TemplateError, match="a message holds </s>, which would be read as a control token"):
        rendered(ChatTemplate().jinja(control_texts=["<s>", "</s>"]), [Turn("user", "What is </s>?")])


def test_template_is_refused_when_nothing_parts_question_and_answer() -> None:
    with pytest.raises(ValueError, match="user_suffix and assistant_prefix are both empty: nothing would tell"):
        ChatTemplate(user_suffix="", assistant_prefix="")


def test_text_is_the_conversation_with_each_answer_on_its_line() -> None:
    assert ChatTemplate().text(TALK[1:]) == "User:\nHi\nAssistant:\nHello\nUser:\nBye\n"
