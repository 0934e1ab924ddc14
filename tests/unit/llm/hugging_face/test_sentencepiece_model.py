"""SentencePiece models that have no equal among Hugging Face's tokenizers are refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2

from llm.errors import ExportError
from llm.hugging_face.sentencepiece_model import SpecialTokens, read_sentencepiece

TrainBytes = Callable[..., bytes]


def test_special_tokens_and_kinds_are_read(runs_model: bytes) -> None:
    model = read_sentencepiece(runs_model, "t.model")
    assert (model.tokens, model.unk_id) == (SpecialTokens(bos=1, eos=2, pad=None), 0)
    assert model.texts("unknown", "control") == ["<unk>", "<s>", "</s>"]
    assert len(model.texts("byte")) == 256
    assert model.data == runs_model
    assert not model.spells_the_mark


def test_the_space_mark_is_spelled_when_a_newline_is_a_piece_alone(novel: str, train_bytes: TrainBytes) -> None:
    options = {"vocab_size": 500, "model_type": "bpe", "user_defined_symbols": ["\n"]}
    assert read_sentencepiece(train_bytes([novel[:30_000]], **options), "t.model").spells_the_mark


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "word"}, "is neither bpe nor unigram, for which Hugging Face's tokenizers have no equal"),
        ({"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"}, r"rewrites characters .* Train the tokenizer"),
        ({"model_type": "bpe", "remove_extra_whitespaces": True}, "removes spaces"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "puts spaces behind words"),
        (
            {"model_type": "bpe", "add_dummy_prefix": True, "user_defined_symbols": ["\n"]},
            "has user-defined pieces and puts a space in front of texts",
        ),
        ({"model_type": "unigram", "user_defined_symbols": ["<|x|>"]}, r"is unigram with the user-defined piece"),
        (
            {"model_type": "bpe", "user_defined_symbols": ["s>"]},
            r"piece 's>', which overlaps the control piece \['<s>'",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_model_is_refused_when_ids_would_differ(
    options: dict[str, Any], message: str, novel: str, train_bytes: TrainBytes
) -> None:
    model = train_bytes([novel[:30_000]], vocab_size=500, **({"byte_fallback": False} | options))
    with pytest.raises(ExportError, match=rf"t\.model: this SentencePiece model .*{message}|{message}"):
        read_sentencepiece(model, "t.model")


def altered(model: bytes, change: Callable[[Any], None]) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    change(proto)
    return bytes(proto.SerializeToString())


def test_a_model_is_refused_when_its_pieces_are_not_those_of_a_trainer(runs_model: bytes) -> None:
    def unused(proto: Any) -> None:
        proto.pieces[300].type = 5

    def foreign_character(proto: Any) -> None:
        proto.pieces[300].piece = "\u00e9\u00e8"

    def twice(proto: Any) -> None:
        proto.pieces[300].piece = proto.pieces[301].piece

    def no_bytes(proto: Any) -> None:
        proto.pieces[10].piece = "<0xFF>"

    cases = [(unused, "marked as unused"), (foreign_character, "of characters that are no pieces"), (twice, "twice")]
    for change, message in [*cases, (no_bytes, "twice|has not the 256 byte pieces")]:
        with pytest.raises(ExportError, match=message):
            read_sentencepiece(altered(runs_model, change), "t.model")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ExportError, match=r"t\.model: 9 bytes that are not a SentencePiece model\. Give the tokenizer"):
        read_sentencepiece(b"not a one", "t.model")
    with pytest.raises(ExportError, match=r"t\.model: a SentencePiece model without pieces"):
        read_sentencepiece(b"", "t.model")
