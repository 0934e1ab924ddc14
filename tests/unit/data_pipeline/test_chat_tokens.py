"""Conversations as tokens: the mask marks answers and their ends, and a prompt is exactly what stood before one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.chat_template import ROLES, ChatTemplate, Turn
from data_pipeline.chat_tokens import encode_conversation, encode_prompt
from data_pipeline.config import TokenizerTrainingConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer

TEXTS = st.text("abc de\n.\u00e9", max_size=12).map(str.strip)
TURNS = st.lists(st.builds(Turn, st.sampled_from(ROLES), TEXTS), min_size=1, max_size=6)
TEMPLATES = st.sampled_from(
    [
        ChatTemplate(),
        ChatTemplate(user_prefix="[INST] ", user_suffix=" [/INST]", assistant_prefix=""),
        ChatTemplate(user_prefix="", user_suffix="", assistant_prefix="ab"),
    ]
)
TALK = "User:\nabc\nAssistant:\nde abc.\nSystem:\nabc abc é\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer([TALK * 5], TokenizerTrainingConfig(vocab_size=300), path)


@given(template=TEMPLATES, turns=TURNS)
def test_masked_tokens_are_the_answers_each_with_its_end(
    tokenizer: Tokenizer, template: ChatTemplate, turns: list[Turn]
) -> None:
    chat = encode_conversation(tokenizer, template, turns)
    assert len(chat.answer_mask) == len(chat.tokens)
    masked = chat.tokens[chat.answer_mask == 1]
    ends = [at for at, token in enumerate(masked) if token == tokenizer.eos_id]
    starts = [0, *(end + 1 for end in ends)]
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    assert [tokenizer.decode(masked[start:end]) for start, end in zip(starts, ends, strict=False)] == answers
    assert starts[-1] == len(masked)


@given(template=TEMPLATES, turns=TURNS)
def test_unmasked_tokens_are_what_is_given(tokenizer: Tokenizer, template: ChatTemplate, turns: list[Turn]) -> None:
    chat = encode_conversation(tokenizer, template, turns)
    given_text = "".join(segment.text for segment in template.segments(turns) if not segment.is_answer)
    assert chat.tokens[0] == tokenizer.bos_id
    assert tokenizer.decode(chat.tokens[chat.answer_mask == 0]) == given_text
    assert (chat.tokens[1:] != tokenizer.bos_id).all()


@given(template=TEMPLATES, turns=TURNS, answer=TEXTS)
def test_prompt_is_the_beginning_of_the_conversation_that_it_is_of(
    tokenizer: Tokenizer, template: ChatTemplate, turns: list[Turn], answer: str
) -> None:
    whole = encode_conversation(tokenizer, template, [*turns, Turn("assistant", answer)])
    prompt = encode_prompt(tokenizer, template, turns)
    assert whole.tokens[: len(prompt)].tolist() == prompt
    rest = [*tokenizer.encode(answer).tolist(), tokenizer.eos_id]
    assert whole.tokens[len(prompt) :].tolist() == rest
    assert whole.answer_mask[len(prompt) :].all()


def test_prompt_is_the_same_with_white_space_around_it(tokenizer: Tokenizer) -> None:
    template = ChatTemplate()
    assert encode_prompt(tokenizer, template, [Turn("user", " abc\n")]) == encode_prompt(
        tokenizer, template, [Turn("user", "abc")]
    )


@given(turns=TURNS)
def test_tokens_are_those_of_the_whole_text_when_prefixes_end_lines(tokenizer: Tokenizer, turns: list[Turn]) -> None:
    """What transformers does with a rendered template: text between control tokens in one piece."""
    chat = encode_conversation(tokenizer, ChatTemplate(), turns)
    expected = [tokenizer.bos_id]
    text = ""
    for segment in ChatTemplate().segments(turns):
        text += segment.text
        if segment.is_answer:
            expected += [*tokenizer.encode(text).tolist(), tokenizer.eos_id]
            text = ""
    assert chat.tokens.tolist() == [*expected, *tokenizer.encode(text).tolist()]


def test_foreign_tokenizer_that_puts_a_space_first_gives_the_answer_back(tmp_path: Path) -> None:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TALK] * 5), model_writer=model, vocab_size=30, model_type="bpe", minloglevel=2
    )
    foreign = Tokenizer.from_bytes(model.getvalue())
    chat = encode_conversation(foreign, ChatTemplate(), [Turn("user", "abc"), Turn("assistant", "de abc")])
    assert foreign.decode(chat.tokens[chat.answer_mask == 1]) == "de abc"
