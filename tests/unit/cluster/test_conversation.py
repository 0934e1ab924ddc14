"""The template in checkpoints, and the conversations that an export is proven on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.conversation import chat_facts, chat_template_of, example_chats
from data_pipeline.chat_template import ChatTemplate
from data_pipeline.config import TokenizerTrainingConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer

TEMPLATE = ChatTemplate(user_prefix="Q:\n")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    text = "Q:\nwhy would nobody in the house hear it?\nAssistant:\nso that she had to say it twice before tea.\n"
    return train_tokenizer([text * 5], TokenizerTrainingConfig(vocab_size=300), path)


def plan(*templates: ChatTemplate | None) -> Any:
    return SimpleNamespace(datasets=[SimpleNamespace(chat_template=template) for template in templates])


@pytest.mark.parametrize("templates", [(TEMPLATE,), (TEMPLATE, TEMPLATE), (None, TEMPLATE)])
def test_template_comes_back_out_of_a_manifest(templates: tuple[ChatTemplate | None, ...]) -> None:
    assert chat_template_of(chat_facts(plan(*templates))) == TEMPLATE


@pytest.mark.parametrize("templates", [(None,), (TEMPLATE, ChatTemplate())])
def test_nothing_is_said_when_there_is_not_one_template(templates: tuple[ChatTemplate | None, ...]) -> None:
    assert chat_facts(plan(*templates)) == {}
    assert chat_template_of({}) is None


def test_examples_are_dialogues_and_longer_talks_of_every_text(tokenizer: Tokenizer) -> None:
    chats = list(example_chats(tokenizer, TEMPLATE, ["why", " so ", "  "], ["<s>"]))
    assert [len(chat.messages) for chat in chats] == [2, 5, 2, 5]
    assert chats[0].messages == [("user", "why"), ("assistant", "so")]
    assert [role for role, _ in chats[1].messages] == ["system", "user", "assistant", "user", "assistant"]
    for chat in chats:
        assert list(chat.ids[: len(chat.prompt_ids)]) == list(chat.prompt_ids)
        assert chat.ids[-1] == tokenizer.eos_id


def test_text_that_names_a_control_token_is_no_example(tokenizer: Tokenizer) -> None:
    chats = list(example_chats(tokenizer, TEMPLATE, ["why", "a <s> b"], ["<s>", "</s>"]))
    assert {content for chat in chats for _, content in chat.messages} == {"why"}
