from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import TokenizerTrainingConfig
from data_pipeline.errors import TokenizerError
from data_pipeline.tokenizer import Tokenizer, TrainingSample, train_tokenizer, training_lines

HARD_TEXTS = [
    "",
    "\n",
    "a\n\n b \n",
    "  two  spaces ",
    "\ttab\x00\x01\x1f\x7f\r\n",
    "\u2581 and \u2581\u2581\n\u2581",
    "\U0001f600 caf\u00e9 e\u0301 \u96ea \u200d\ufeff\u2028\ufffd",
    "<s></s><unk><pad><0x41> \u2047 \u2585",
]


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, novel: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    config = TokenizerTrainingConfig(model_type=request.param, vocab_size=512)
    return train_tokenizer([novel[:60_000]], config, tmp_path_factory.mktemp("tokenizer") / "t.model")


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_tokenizer_gives_the_text_back_when_it_is_hard(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(st.text())
def test_tokenizer_gives_the_text_back_when_it_is_any(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.decode_stream(ids.tolist())) == text


@settings(deadline=None)
@given(st.text())
def test_tokenizer_never_gives_control_pieces_when_text_is_any(tokenizer: Tokenizer, text: str) -> None:
    assert not {0, 1, 2, 3} & set(tokenizer.encode(text + "<s></s><pad><unk>").tolist())


def test_tokenizer_gives_the_ids_of_the_whole_text_when_it_cuts_lines(tokenizer: Tokenizer, novel: str) -> None:
    text = novel[:40_000]
    whole = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    if isinstance(whole.GetScore(300), float) and whole.GetScore(300).is_integer():  # BPE: scores are ranks
        assert tokenizer.encode(text).tolist() == whole.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encode_batch_gives_each_text_its_ids_when_threads_differ(tokenizer: Tokenizer, novel: str) -> None:
    texts = [*HARD_TEXTS, *novel[:20_000].split("\n\n")]
    alone = [tokenizer.encode(text).tolist() for text in texts]
    for threads in (1, 2):
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts, threads)] == alone


def test_tokenizer_is_the_same_when_trained_again(novel: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = TokenizerTrainingConfig(vocab_size=512)
    again = [train_tokenizer([novel[:60_000]], config, tmp_path / f"{n}.model").hash for n in range(2)]
    assert again[0] == again[1]
    assert Tokenizer.load(tmp_path / "0.model").hash == again[0]


def test_tokenizer_states_its_pieces_when_trained(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (512, 1, 2, 3)


def test_pieces_have_the_names_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(token) for token in (tokenizer.bos_id, tokenizer.eos_id)] == ["<s>", "</s>"]


def test_decode_stream_holds_back_when_a_character_is_incomplete(tokenizer: Tokenizer) -> None:
    parts = list(tokenizer.decode_stream(tokenizer.encode("\U0001f600!").tolist()))
    assert parts == ["\U0001f600", "!"]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_names_a_size_that_works_when_the_vocabulary_is_too_large(model_type: str, tmp_path: Path) -> None:
    texts = ["a short text about nothing much, a text of few words"]
    with pytest.raises(TokenizerError, match=r"vocab_size is 4000, .*largest that works is (\d+)") as caught:
        train_tokenizer(texts, TokenizerTrainingConfig(model_type=model_type, vocab_size=4000), tmp_path / "t.model")  # type: ignore[arg-type]
    largest = int(str(caught.value).split("largest that works is ")[1].split(".")[0])
    assert largest < 4000
    if largest >= 300:
        config = TokenizerTrainingConfig(model_type=model_type, vocab_size=largest)  # type: ignore[arg-type]
        assert train_tokenizer(texts, config, tmp_path / "t.model").vocab_size == largest


def test_training_names_a_size_that_works_when_the_vocabulary_is_too_small(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + index) for index in range(500)) * 3
    with pytest.raises(TokenizerError, match=r"Set tokenizer\.train\.vocab_size=(\d+) or more") as caught:
        train_tokenizer([text], TokenizerTrainingConfig(vocab_size=300), tmp_path / "t.model")
    size = int(str(caught.value).split("Set tokenizer.train.vocab_size=")[1].split(" ")[0])
    train_tokenizer([text], TokenizerTrainingConfig(vocab_size=size), tmp_path / "t.model")


def test_training_is_silent_when_it_succeeds(novel: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer([novel[:30_000]], TokenizerTrainingConfig(vocab_size=400), tmp_path / "t.model")
    assert capfd.readouterr() == ("", "")


def test_training_refuses_when_there_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="There is no text to train a tokenizer on"):
        train_tokenizer([], TokenizerTrainingConfig(vocab_size=400), tmp_path / "t.model")


def test_training_lines_hold_all_text_when_a_line_is_very_long() -> None:
    assert "".join(training_lines(["x" * 10_000 + "\ny"])) == "x" * 10_000 + "y"
    assert max(map(len, training_lines(["x" * 10_000]))) <= 4096


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=30), st.integers(1, 120), st.randoms())
def test_training_sample_is_the_same_when_texts_come_in_another_order(
    texts: list[str], limit: int, random: object
) -> None:
    def sample(items: list[str]) -> list[str]:
        chosen = TrainingSample(limit, seed=5)
        for text in items:
            chosen.add(text)
        return list(chosen.texts())

    shuffled = list(texts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = sample(texts)
    assert first == sample(shuffled)
    size = sum(len(text.encode()) for text in first)
    assert size >= min(limit, sum(len(text.encode()) for text in texts))
    assert size - len(first[-1].encode()) < limit


def test_loading_says_so_when_the_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(b"not a model at all")
    with pytest.raises(TokenizerError, match=r"t\.model \(18 bytes\) is not a SentencePiece model"):
        Tokenizer.load(tmp_path / "t.model")
    with pytest.raises(TokenizerError, match=r"missing\.model cannot be read \(No such file or directory\)"):
        Tokenizer.load(tmp_path / "missing.model")


@pytest.fixture
def make_foreign(novel: str) -> Callable[..., bytes]:
    def make(**options: object) -> bytes:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(novel[:30_000].split("\n")),
            model_writer=model,
            vocab_size=400,
            minloglevel=2,
            **options,
        )
        return model.getvalue()

    return make


def test_loading_says_so_when_a_model_has_no_bos(make_foreign: Callable[..., bytes]) -> None:
    with pytest.raises(TokenizerError, match="has no BOS piece"):
        Tokenizer.from_bytes(make_foreign(bos_id=-1), "foreign.model")


def test_foreign_model_encodes_as_sentencepiece_does_when_it_adds_a_space(
    make_foreign: Callable[..., bytes],
) -> None:
    model = make_foreign()
    text = " It is \u2581 a truth\nuniversally   acknowledged"
    tokenizer = Tokenizer.from_bytes(model)
    assert tokenizer.encode(text).tolist() == sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)
    assert tokenizer.pad_id is None
    assert "".join(tokenizer.decode_stream(tokenizer.encode(text).tolist())) == tokenizer.decode(tokenizer.encode(text))
