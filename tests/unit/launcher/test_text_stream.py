"""Tokens as text: stops in one stream and in batches, what is told of each text, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.inference import LoadedModel
from data_pipeline.chat_template import ChatTemplate, Turn
from data_pipeline.config import DataConfig, TokenizerTrainingConfig
from data_pipeline.tokenizer import train_tokenizer
from launcher.errors import UsageError
from launcher.prompt_file import TextPrompt
from launcher.text_stream import NO_STOPS, Stops, Written, before_stop, continue_text, continue_texts, cut_at_stop
from llm.config import ModelConfig
from llm.errors import GenerationError
from llm.initialization import initialize
from llm.sampling import SamplingConfig
from llm.transformer import Transformer

TEXT = "It was a truth that nobody in the house would hear, and she had said it twice before tea. " * 40
SAMPLING = SamplingConfig(max_new_tokens=24)
PROMPTS = [TextPrompt(text="She"), TextPrompt(text="", seed=5), TextPrompt(text="It was a truth that é")]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizer = train_tokenizer([TEXT], TokenizerTrainingConfig(vocab_size=300), path)
    config = ModelConfig(
        vocab_size=320,  # more rows than the tokenizer has pieces
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    model = Transformer(config, "sdpa")
    initialize(model, config, seed=5)
    data = DataConfig(dataset="unused", seq_len=32)
    return LoadedModel(
        model=model.eval(), tokenizer=tokenizer, data=data, dataset_paths=(), step=1, run_directory=Path("run")
    )


def written(loaded: LoadedModel, stops: Stops = NO_STOPS, batch_size: int = 8) -> list[Written]:
    return list(continue_texts(loaded, PROMPTS, SAMPLING, stops, batch_size=batch_size))


def streamed(loaded: LoadedModel, stops: Stops = NO_STOPS) -> list[str]:
    return ["".join(continue_text(loaded, prompt, SAMPLING, stops)) for prompt in PROMPTS]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_texts_are_those_of_the_stream_when_batched(loaded: LoadedModel, batch_size: int) -> None:
    texts = written(loaded, batch_size=batch_size)
    assert [each.text for each in texts] == streamed(loaded)
    assert [each.prompt for each in texts] == [prompt.text for prompt in PROMPTS]
    assert [(each.end, each.new_tokens, each.seed) for each in texts] == [
        ("max_new_tokens", 24, 0),
        ("max_new_tokens", 24, 5),
        ("max_new_tokens", 24, 0),
    ]
    assert texts[1].prompt_tokens == 1


def test_texts_end_before_the_stop_when_it_comes(loaded: LoadedModel) -> None:
    whole = streamed(loaded)
    stops = Stops(texts=("ufo<", "Wn", "never written"))  # of several tokens each
    texts = written(loaded, stops)
    expected = [whole[0].partition("ufo<")[0], whole[1].partition("Wn")[0], whole[2]]
    assert [each.text for each in texts] == streamed(loaded, stops) == expected
    assert [each.end for each in texts] == ["stop_text", "stop_text", "max_new_tokens"]
    assert texts[0].new_tokens < 24


def test_texts_end_before_the_token_when_it_is_a_stop(loaded: LoadedModel) -> None:
    first = written(loaded)[0].text
    comma = loaded.tokenizer.encode(",").tolist()[-1]
    texts = written(loaded, Stops(tokens=(comma,)))
    assert texts[0].end == "stop_token"
    assert first.startswith(texts[0].text)
    assert len(texts[0].text) < len(first)


@given(
    letters=st.text("ab.", max_size=12),
    stops=st.lists(st.text("ab.", min_size=1, max_size=3), max_size=3),
)
def test_stream_is_the_text_before_the_stop_that_ends_first_when_letters_come_singly(
    letters: str, stops: list[str]
) -> None:
    begun = [letters[:length] for length in range(len(letters) + 1)]
    until = next((text for text in begun if any(stop in text for stop in stops)), letters)
    assert "".join(before_stop(letters, stops)) == cut_at_stop(until, stops)


def test_stream_passes_on_what_can_be_no_stop_as_soon_as_it_comes() -> None:
    pieces = iter(["one", " t", "wo", " th", "an"])
    stream = before_stop(pieces, ["two words", "three"])
    assert [next(stream), next(stream), list(pieces)] == ["one", " ", ["wo", " th", "an"]]
    assert list(before_stop(["one", " t", "wo", " th", "an"], ["two words", "three"])) == ["one", " ", "two ", "than"]


def test_prompts_are_all_checked_when_none_is_continued_yet(loaded: LoadedModel) -> None:
    prompts = [TextPrompt(text="She"), TextPrompt(text="zebra " * 30)]
    with pytest.raises(
        GenerationError, match=r"^prompt 2 of 2 has \d+ tokens, and model.max_position_embeddings is 64"
    ):
        continue_texts(loaded, prompts, SAMPLING, batch_size=1)


def test_prompt_is_refused_when_it_is_no_text(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError) as error:
        continue_text(loaded, TextPrompt(text="a\ud800"), SAMPLING)
    assert str(error.value) == (
        "the prompt 'a\\ud800' has half a UTF-16 pair at character 1, and is no text. Remove it."
    )


def test_stop_is_refused_when_it_is_empty() -> None:
    with pytest.raises(UsageError) as error:
        Stops(texts=("a", ""))
    assert str(error.value) == (
        "--stop is empty: every text would end before it begins. Give some text, or leave it out."
    )


def test_stop_token_is_refused_when_the_tokenizer_has_no_such_piece(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError) as error:
        continue_texts(loaded, PROMPTS, SAMPLING, Stops(tokens=(300,)), batch_size=1)
    assert str(error.value) == (
        "--stop-token is 300, and the run's tokenizer has 300 pieces: it never comes. Use 0 to 299, or --stop with a "
        "text."
    )


@pytest.fixture
def chatting(loaded: LoadedModel) -> LoadedModel:
    """The model as if it had been trained on conversations."""
    return replace(
        loaded, chat_template=ChatTemplate(system_prefix="S:\n", user_prefix="Q:\n", assistant_prefix="A:\n")
    )


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_question_goes_through_the_template_when_it_is_a_chat(system: str | None, chatting: LoadedModel) -> None:
    before = "" if system is None else f"S:\n{system}\n"
    plain = TextPrompt(text=f"{before}Q:\nShe\nA:\n")
    earlier = () if system is None else (Turn("system", system),)
    asked = TextPrompt(text="She", chat=True, earlier=earlier)
    answer = "".join(continue_text(chatting, asked, SAMPLING))
    assert answer == "".join(continue_text(chatting, plain, SAMPLING))
    (batched,) = continue_texts(chatting, [asked], SAMPLING, batch_size=1)
    assert (batched.prompt, batched.text) == ("She", answer)


def test_chat_is_refused_when_the_run_has_no_template(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError, match="--chat: run was trained on no conversations, or on several kinds, and has"):
        continue_text(loaded, TextPrompt(text="She", chat=True), SAMPLING)
