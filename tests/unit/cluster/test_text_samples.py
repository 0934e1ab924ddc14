from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import MicroBatch
from cluster.engines.torch_engine import TorchEngine
from cluster.evaluation.config import EvaluationConfig
from cluster.text_samples import UNPROMPTED, TextSampler, prompt_labels, samples_are_written
from cluster.topology import Topology
from data_pipeline.chat_template import ChatTemplate, Turn
from data_pipeline.chat_tokens import encode_prompt
from data_pipeline.config import DataConfig, TokenizerTrainingConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from llm.config import ModelConfig, OptimizerConfig
from llm.generation import NewTokens
from llm.kv_cache import KeyValueCache
from llm.transformer import Transformer

TEXT = "It was a truth that nobody in the house would hear, and she had said it twice before tea. " * 40
MODEL = ModelConfig(
    vocab_size=320,  # more rows than the tokenizer has pieces
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=24,
)
CONFIG = RunConfig(
    name="run",
    data=DataConfig(dataset="x", seq_len=16),
    evaluation=EvaluationConfig(prompts=("", "She"), sample_tokens=8),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only cost time where a matrix has 16 columns."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([TEXT], TokenizerTrainingConfig(vocab_size=300), path)
    return path


class CountingEngine(TorchEngine):
    """Remembers the tokens of each pass."""

    passes: list[list[list[int]]]

    def next_logits(self, new: NewTokens, cache: KeyValueCache) -> torch.Tensor:
        self.passes.append(new.tokens.tolist())
        return super().next_logits(new, cache)


def engine(model: ModelConfig = MODEL) -> CountingEngine:
    made = CountingEngine(Transformer(model, "sdpa"), optimizer=OptimizerConfig(), precision="fp32")
    made.load(InitialState(model, 7))
    made.passes = []
    return made


def sampler(path: Path, config: RunConfig = CONFIG) -> TextSampler:
    return TextSampler(config, tokenizer_path=path, topology=Topology(), collectives=Collectives())


def test_text_is_the_same_when_a_step_comes_again(tokenizer_path: Path) -> None:
    first, again = (sampler(tokenizer_path).write(engine(), 5) for _ in range(2))
    assert first == again
    assert [sample.prompt for sample in first] == ["", "She"]
    assert all(sample.text for sample in first)


def test_text_is_another_when_the_step_or_the_seed_is(tokenizer_path: Path) -> None:
    five, six = (sampler(tokenizer_path).write(engine(), step) for step in (5, 6))
    other = sampler(tokenizer_path, replace(CONFIG, seed=9)).write(engine(), 5)
    assert len({samples[0].text for samples in (five, six, other)}) == 3


def test_global_generator_is_left_alone_when_text_is_written(tokenizer_path: Path) -> None:
    before = torch.get_rng_state()
    sampler(tokenizer_path).write(engine(), 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_text_is_no_longer_than_asked(tokenizer_path: Path) -> None:
    config = replace(CONFIG, evaluation=EvaluationConfig(prompts=("",), sample_tokens=3))
    counting = engine()
    sampler(tokenizer_path, config).write(counting, 5)
    assert len(counting.passes) == 3


@pytest.mark.parametrize("change", [{"sample_tokens": 0}, {"prompts": ()}, {"every_steps": None}])
def test_nothing_is_written_when_nothing_is_asked(change: dict[str, object], tokenizer_path: Path) -> None:
    config = replace(CONFIG, evaluation=replace(CONFIG.evaluation, **change))  # type: ignore[arg-type]
    assert sampler(tokenizer_path, config).write(engine(), 5) == []


def test_prompt_is_left_out_when_the_model_is_not_trained_on_its_length(
    tokenizer_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, evaluation=EvaluationConfig(prompts=("zebra " * 20, "")))
    assert [sample.prompt for sample in sampler(tokenizer_path, config).write(engine(), 5)] == [""]
    assert "more than the 16 that data.seq_len and model.max_position_embeddings allow" in caplog.text


def test_prompts_are_continued_sixteen_at_a_time_when_there_are_more(tokenizer_path: Path) -> None:
    prompts = tuple(f"tea {number}" for number in range(18))
    config = replace(CONFIG, evaluation=EvaluationConfig(prompts=prompts, sample_tokens=1))
    counting = engine()
    assert [sample.prompt for sample in sampler(tokenizer_path, config).write(counting, 5)] == list(prompts)
    assert [len(tokens) for tokens in counting.passes] == [16, 2]


def test_text_is_the_same_when_other_prompts_are_asked_too(tokenizer_path: Path) -> None:
    alone = replace(CONFIG, evaluation=replace(CONFIG.evaluation, prompts=("She",)))
    assert sampler(tokenizer_path, alone).write(engine(), 5) == sampler(tokenizer_path, CONFIG).write(engine(), 5)[1:]


def test_text_ends_with_the_positions_when_the_model_has_a_limit(tokenizer_path: Path) -> None:
    prompt, longer = "tea " * 3, "tea " * 5
    tokens, more = (1 + len(Tokenizer.load(tokenizer_path).encode(text)) for text in (prompt, longer))
    limited = replace(MODEL, max_position_embeddings=more)  # no room for a token more after the longer
    evaluation = EvaluationConfig(prompts=(prompt, longer), sample_tokens=64)
    config = replace(CONFIG, model=limited, evaluation=evaluation, data=DataConfig(dataset="x", seq_len=more))
    counting = engine(limited)
    assert [sample.prompt for sample in sampler(tokenizer_path, config).write(counting, 5)] == [prompt]
    assert [len(rows[0]) for rows in counting.passes] == [tokens, *[1] * (more - tokens - 1)]


@pytest.mark.parametrize("room", [0, 1])
def test_samples_are_written_where_a_prompt_leaves_room_for_a_token(room: int, tokenizer_path: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_path)
    tokens = 1 + len(tokenizer.encode("tea"))
    limited = replace(MODEL, max_position_embeddings=tokens + room)
    evaluation = EvaluationConfig(prompts=("tea",), every_steps=4)
    config = replace(CONFIG, model=limited, evaluation=evaluation, data=DataConfig(dataset="x", seq_len=tokens))
    assert samples_are_written(config, tokenizer) == (room > 0)
    assert bool(sampler(tokenizer_path, config).write(engine(limited), 4)) == (room > 0)


def test_only_the_samples_are_lost_when_the_tokenizer_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"half")
    assert sampler(tmp_path / "tokenizer.model").write(engine(), 5) == []
    assert "no text samples are written" in caplog.text


def test_only_the_sample_is_cut_short_when_the_model_has_diverged(
    tokenizer_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    diverged = engine()
    with torch.no_grad():
        for parameter in diverged._model.parameters():
            parameter.fill_(float("nan"))
    samples = sampler(tokenizer_path).write(diverged, 5)
    assert [sample.text for sample in samples] == ["", ""]
    assert "scores of the next token are not finite" in caplog.text


class Follower(Collectives):
    """A rank that is told what rank 0 has chosen."""

    def __init__(self, told: list[object]) -> None:
        super().__init__()
        self.told = told

    def from_main(self, value: object) -> object:  # type: ignore[override]
        return self.told.pop(0)


def test_other_ranks_make_the_passes_that_rank_0_makes(tokenizer_path: Path) -> None:
    leader = sampler(tokenizer_path)
    stop = Tokenizer.load(tokenizer_path).eos_id
    told = [leader._plan, [40, 42], [41, stop], [stop]]
    counting = engine()
    follower = TextSampler(
        CONFIG,
        tokenizer_path=tokenizer_path,
        topology=Topology(rank=1, world_size=2),
        collectives=Follower(told),
    )
    assert follower.write(counting, 5) == []
    begun, she = (list(prompt.tokens) for prompt in leader._plan.prompts)  # type: ignore[union-attr]
    padding = [0] * (len(she) - len(begun))
    assert counting.passes == [[padding + begun, she], [[40], [42]], [[41]]]
    assert told == []


def test_next_step_is_bit_equal_when_text_was_written(tokenizer_path: Path) -> None:
    def step(made: TorchEngine) -> torch.Tensor:
        tokens = torch.arange(32).reshape(2, 16)
        made.accumulate(MicroBatch(tokens, tokens, torch.ones(2, 16), None), torch.tensor(1 / 32))
        return made.update(1e-2)

    silent, writing = engine(), engine()
    sampler(tokenizer_path).write(writing, 5)
    assert torch.equal(step(silent), step(writing))
    for left, right in zip(silent.snapshot(), writing.snapshot(), strict=True):
        assert all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)


def test_prompts_have_different_names_when_they_begin_alike() -> None:
    labels = prompt_labels(["", "The  day\nbegan", "x" * 60 + "a", "x" * 60 + "b"])
    assert labels[:2] == [UNPROMPTED, "The day began"]
    assert len(set(labels)) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_tokens": -1}, "sample_tokens is -1"),
        ({"prompts": ("a", "a")}, "Name each once"),
        ({"prompts": ("\ud800",)}, "half a UTF-16 pair"),
    ],
)
def test_evaluation_config_is_refused_when_it_makes_no_sense(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**fields)  # type: ignore[arg-type]


def test_prompt_is_a_users_turn_when_answers_are_learned(tokenizer_path: Path) -> None:
    config = replace(CONFIG, task="instruction", data=DataConfig(dataset="x", seq_len=64))
    tokenizer, asked = Tokenizer.load(tokenizer_path), engine()
    TextSampler(
        config,
        tokenizer_path=tokenizer_path,
        topology=Topology(),
        collectives=Collectives(),
        chat_template=ChatTemplate(),
    ).write(asked, 5)
    turn = encode_prompt(tokenizer, ChatTemplate(), [Turn("user", "She")])
    assert [row[-len(turn) :] for row in asked.passes[0]][1] == turn
    assert tokenizer.bos_id in asked.passes[0][0]  # the empty prompt begins a document, as ever


def test_prompt_is_continued_when_every_token_of_conversations_is_learned(tokenizer_path: Path) -> None:
    plain = sampler(tokenizer_path).write(engine(), 5)
    whole = TextSampler(
        CONFIG,
        tokenizer_path=tokenizer_path,
        topology=Topology(),
        collectives=Collectives(),
        chat_template=ChatTemplate(),
    )
    assert whole.write(engine(), 5) == plain
