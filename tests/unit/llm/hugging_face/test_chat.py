"""Chat templates in exports: transformers gives the ids of training, or the export is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.chat_template import ChatTemplate, Turn
from data_pipeline.chat_tokens import encode_conversation, encode_prompt
from data_pipeline.config import TokenizerTrainingConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from llm.config import ModelConfig
from llm.errors import ProofError
from llm.hugging_face.chat import ExpectedChat, prove_chat_template
from llm.hugging_face.configuration import write_document
from llm.hugging_face.sentencepiece_model import read_sentencepiece
from llm.hugging_face.tokenizer import prove_tokenizer, tokenizer_files

pytest.importorskip("transformers")

TALK = [
    Turn("system", "Be brief."),
    Turn("user", "Who is there?\n\n  I am."),
    Turn("assistant", "Nobody, \u2014 \u4e2d\u6587."),
    Turn("user", "na\u00efve 12,5 %"),
    Turn("assistant", "Yes.\nAlways."),
]


def trained(kind: str, directory: Path) -> Tokenizer:
    """A tokenizer of `data tokenizer`, or one that puts a space in front of every text, as Llama 2's does."""
    text = [*("User:", "Assistant:", "System:", "Assistant: yes."), "Who is there? I am. Nobody, yes. Always."] * 5
    text += ["It was the truth that nobody in the house would hear, and the cat had said it in the garden."] * 5
    if kind != "foreign":
        config = TokenizerTrainingConfig(model_type=kind, vocab_size=305)  # type: ignore[arg-type]
        return train_tokenizer(["\n".join(text)], config, directory / "t.model")
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=305,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return Tokenizer.from_bytes(model.getvalue())


def write(tokenizer: Tokenizer, template: ChatTemplate, directory: Path) -> Path:
    """An export without weights."""
    model = read_sentencepiece(tokenizer.model, "t.model")
    jinja = template.jinja(
        control_texts=model.texts("control", "unknown"), answer_lead=" " if model.dummy_prefix else ""
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 56}
    config = ModelConfig(vocab_size=len(model.pieces), max_position_embeddings=64, **sizes)
    family, document = write_document(config)
    (directory / "config.json").write_text(json.dumps(document))
    for name, data in tokenizer_files(model, family.model_type, 64, jinja).items():
        (directory / name).write_bytes(data)
    return directory


def expected(tokenizer: Tokenizer, template: ChatTemplate, turns: list[Turn]) -> ExpectedChat:
    return ExpectedChat(
        messages=[(turn.role, turn.content) for turn in turns],
        ids=encode_conversation(tokenizer, template, turns).tokens.tolist(),
        prompt_ids=encode_prompt(tokenizer, template, turns[:-1]),
    )


@pytest.fixture(params=["bpe", "unigram", "foreign"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return trained(request.param, tmp_path)


def test_transformers_asks_as_in_training(tokenizer: Tokenizer, tmp_path: Path) -> None:
    directory = write(tokenizer, ChatTemplate(), tmp_path)
    chats = [expected(tokenizer, ChatTemplate(), TALK[:length]) for length in (3, 5)]
    assert prove_chat_template(directory, chats) == 2


def test_ids_of_plain_text_stay_proven_beside_a_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    directory = write(tokenizer, ChatTemplate(), tmp_path)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text).tolist()
        return ids

    assert prove_tokenizer(directory, encode, ["Who is <s> there </s>?", "na\u00efve"]) > 10


def test_template_is_refused_when_tokens_cross_into_the_answer(tmp_path: Path) -> None:
    tokenizer = trained("bpe", tmp_path)
    template = ChatTemplate(assistant_prefix="Say: t")  # and an answer that begins with the rest of a piece
    directory = write(tokenizer, template, tmp_path)
    chat = expected(tokenizer, template, [Turn("user", "Who"), Turn("assistant", "he house")])
    with pytest.raises(ProofError, match=r"gives other ids than the model was trained on: in conversation 0, token"):
        prove_chat_template(directory, [chat])


def test_message_that_names_a_control_token_is_refused_by_transformers(tmp_path: Path) -> None:
    import jinja2
    from transformers import AutoTokenizer

    directory = write(trained("bpe", tmp_path), ChatTemplate(), tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(directory)
    with pytest.raises(jinja2.TemplateError, match="a message holds </s>, which would be read as a control token"):
        theirs.apply_chat_template([{"role": "user", "content": "What is </s>?"}])
