"""Tokenizers of both kinds, exported: transformers gives the same ids for any text, or the export is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from data_pipeline.config import TokenizerTrainingConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from llm.config import ModelConfig
from llm.errors import ExportError, ProofError
from llm.hugging_face.configuration import write_document
from llm.hugging_face.sentencepiece_model import SentencePieceModel, read_sentencepiece
from llm.hugging_face.tokenizer import bpe_merges, prove_tokenizer, tokenizer_files

LLAMA = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 56}
UNEXACT_SHARE = 1e-4
"""Unigram: share of tokens that may differ, in lines of hundreds of characters, by ties of single precision."""
PIECES = ["a", "b", "aa", "ab", "the", " the", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u2581", "\u2581\u2581 "]
NAMES = ["<s>", "</s>", "<pad>", "<unk>", "<0x0A>", "<0x41>", "<", "<0x", "s>", "\u00e9", "e\u0301", "\U0001f600", "0"]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES + NAMES), max_size=40).map("".join))
EXAMPLES = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

TrainBytes = Callable[..., bytes]


def write(model: SentencePieceModel, directory: Path) -> Path:
    """An export without weights."""
    config = ModelConfig(vocab_size=len(model.pieces), max_position_embeddings=64, **LLAMA)
    family, document = write_document(config)
    (directory / "config.json").write_text(json.dumps(document))
    for name, data in tokenizer_files(model, family.model_type, 64).items():
        (directory / name).write_bytes(data)
    return directory


def theirs(directory: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def ours(request: pytest.FixtureRequest, novel: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of `data tokenizer`, with runs of spaces, dashes and digits among its pieces."""
    config = TokenizerTrainingConfig(model_type=request.param, vocab_size=700)
    runs = "\n".join(" " * n + "x" + "-" * n + "0" * n + "ab" * n for n in range(1, 40))
    return train_tokenizer([novel[:60_000], runs], config, tmp_path_factory.mktemp("tokenizer") / "t.model")


@pytest.fixture(scope="session")
def twin(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return theirs(write(read_sentencepiece(ours.model, "t.model"), tmp_path_factory.mktemp("export")))


@EXAMPLES
@given(text=TEXTS)
def test_ids_are_the_same_when_text_is_any(ours: Tokenizer, twin: Any, text: str) -> None:
    assert twin(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()


@EXAMPLES
@given(text=TEXTS)
def test_decoding_gives_the_text_back_when_it_is_any(ours: Tokenizer, twin: Any, text: str) -> None:
    assert twin.decode(ours.encode(text).tolist()) == text


def test_ids_are_the_same_when_text_is_a_novel(ours: Tokenizer, twin: Any, novel: str) -> None:
    lines = [line for paragraph in novel.split("\n\n") for line in (paragraph, paragraph.replace("\n", " "))]
    expected = [ids.tolist() for ids in ours.encode_batch(lines)]
    ids = twin(lines, add_special_tokens=False)["input_ids"]
    assert sum(map(len, expected)) > 200_000
    wrong = [len(one) for one, other in zip(ids, expected, strict=True) if one != other]
    exact = read_sentencepiece(ours.model, "").algorithm == "bpe"
    assert len(wrong) <= (0 if exact else UNEXACT_SHARE * sum(map(len, expected)))


def test_a_text_begins_with_bos_when_special_tokens_are_wanted(ours: Tokenizer, twin: Any) -> None:
    assert twin("a b")["input_ids"] == [ours.bos_id, *ours.encode("a b").tolist()]
    assert (twin.bos_token_id, twin.eos_token_id, twin.pad_token_id, twin.unk_token_id) == (1, 2, 3, 0)
    assert len(twin) == ours.vocab_size


@EXAMPLES
@given(text=st.text(alphabet="ab -\n", max_size=80))
def test_ids_are_the_same_when_pieces_arise_in_several_ways(runs_model: bytes, runs_twin: Any, text: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=runs_model)
    assert runs_twin(text, add_special_tokens=False)["input_ids"] == processor.encode(text)


@pytest.fixture(scope="session")
def runs_twin(runs_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return theirs(write(read_sentencepiece(runs_model, ""), tmp_path_factory.mktemp("export")))


FOREIGN = {
    "llama 2": {"model_type": "bpe", "add_dummy_prefix": True},
    "without bytes": {"model_type": "bpe", "byte_fallback": False},
    "unigram, dummy prefix": {"model_type": "unigram", "add_dummy_prefix": True},
    "chat": {"model_type": "bpe", "user_defined_symbols": ["<|start|>", "<|end|>", "\n"]},
    "more control": {"model_type": "bpe", "control_symbols": ["<mask>"], "pad_id": 3},
}


@pytest.mark.parametrize("options", FOREIGN.values(), ids=FOREIGN)
def test_ids_are_the_same_when_the_model_is_foreign(
    options: dict[str, Any], novel: str, train_bytes: TrainBytes, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_bytes(train_bytes([novel[:30_000]], vocab_size=500, **options))
    twin = theirs(write(read_sentencepiece(tokenizer.model, ""), tmp_path))
    hard = [" It is \u2581 a\ttruth\n\nuniversally   acknowledged ", "", " ", "  ", "\u2581", "\u00e9\u00e8 \u4e2d"]
    for text in [*hard, "<|start|>user\nHi<|end|><s>", "<mask><0x41>", novel[1000:3000]]:
        ids = tokenizer.encode(text).tolist()
        assert twin(text, add_special_tokens=False)["input_ids"] == ids, text
        if 0 not in ids:
            assert twin.decode(ids) == tokenizer.decode(ids)


def level(model: bytes) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    for piece in proto.pieces:
        piece.score = 0.0
    return bytes(proto.SerializeToString())


def test_a_model_is_refused_when_two_pieces_have_one_score(runs_model: bytes) -> None:
    model = read_sentencepiece(level(runs_model), "t.model")
    with pytest.raises(ExportError, match=r"have one score, 0\.0: which of them SentencePiece joins first depends"):
        bpe_merges(model)


def test_a_tokenizer_is_refused_when_transformers_would_take_another(runs_model: bytes) -> None:
    with pytest.raises(ExportError, match=r"model_type is qwen2, for which transformers loads a tokenizer of its own"):
        tokenizer_files(read_sentencepiece(runs_model, ""), "qwen2", 64)


@pytest.mark.parametrize(
    "model_type",
    ["llama", "mistral", "mixtral", "qwen3", "qwen3_moe", "granite", "gemma", "gemma2", "gemma3_text", "gpt2"],
)
def test_transformers_takes_the_tokenizer_beside_a_model_of_any_family(
    model_type: str, runs_model: bytes, tmp_path: Path
) -> None:
    model = read_sentencepiece(runs_model, "")
    write(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    processor = sentencepiece.SentencePieceProcessor(model_proto=runs_model)
    assert prove_tokenizer(tmp_path, processor.encode, ["ababab  aaaa", "b\n<s>"]) > 5


def test_a_tokenizer_is_refused_by_the_proof_when_ids_differ(runs_model: bytes, tmp_path: Path) -> None:
    write(read_sentencepiece(runs_model, ""), tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=runs_model)
    with pytest.raises(ProofError, match=r"gives other ids from .*: in text 1, token 0, after '', "):
        prove_tokenizer(tmp_path, lambda text: processor.encode(text.replace("a", "b")), ["b", "a"])


def test_a_proof_of_a_tokenizer_is_refused_when_transformers_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ProofError, match=r"not compared with transformers, which is not installed here\. Install it"):
        prove_tokenizer(tmp_path, lambda text: [], [])
