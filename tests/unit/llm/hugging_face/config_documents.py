"""Small config.json documents, and what is asked of each spelling that is read or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm.config import ModelConfig
from llm.errors import HuggingFaceConfigError
from llm.hugging_face.configuration import differences, read_document

Document = dict[str, Any]

LLAMA: Document = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GEMMA3 = LLAMA | {"model_type": "gemma3_text", "head_dim": 16}
QWEN2 = LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2}


def read(document: Document, **more: Any) -> ModelConfig:
    return read_document(document | more).config


def assert_read(document: Document, older: Document, expected: Document) -> None:
    """The older keys give these fields."""
    config = read(document, **older)
    assert {name: getattr(config, name) for name in expected} == expected


def assert_read_as_by_transformers(document: Document, older: Document) -> None:
    """The older keys give the model that transformers makes of them."""
    transformers = pytest.importorskip("transformers")
    newer = transformers.AutoConfig.for_model(**json.loads(json.dumps(document | older))).to_dict()
    assert differences(read_document(newer).config, read(document, **older)) == []


def assert_refused(document: Document, more: Document, message: str) -> None:
    """With the additional keys the document is refused, with a message that this pattern matches."""
    with pytest.raises(HuggingFaceConfigError, match=message):
        read_document(document | more)


def refusals(cases: list[tuple[Document, Document, str]]) -> pytest.MarkDecorator:
    """Parametrises a test with documents, additional keys and messages, by the key where it is one."""
    names = [str(*more) if len(more) == 1 else "two" for _, more, _ in cases]
    return pytest.mark.parametrize(("document", "more", "message"), cases, ids=names)
