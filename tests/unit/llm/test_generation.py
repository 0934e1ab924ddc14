"""Generation: neither the cache nor a batch changes a text, rows end as they should, bad prompts are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm.accounting import parameter_parts
from llm.config import ModelConfig
from llm.errors import GenerationError
from llm.generation import check_prompts, continue_prompts, generate
from llm.initialization import initialize
from llm.sampling import SamplingConfig
from llm.transformer import Transformer

PROMPT = [5, 17, 3, 60, 2]
PROMPTS = [PROMPT, [9], [33, 8, 1, 1, 40, 22, 6, 19, 50], [12, 4, 7]]
GREEDY = SamplingConfig(max_new_tokens=40, temperature=0)
KINDS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned positions": {"position_embedding": "learned", "max_position_embeddings": 64},
    "sliding": {"sliding_window": 6},
    "every other slides": {"sliding_window": 4, "layer_types": ("sliding_attention", "full_attention")},
}


def make_model(attention: str = "sdpa", **changes: Any) -> Transformer:
    config = ModelConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
        **changes,
    )
    model = Transformer(config, attention)
    initialize(model, config, seed=1)
    return model


@torch.no_grad()
def greedy_without_cache(model: Transformer, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model.logits(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tokens_equal_those_without_cache_when_greedy(attention: str, changes: dict[str, Any]) -> None:
    model = make_model(attention, **changes)
    expected = greedy_without_cache(model, PROMPT, 40)
    assert len(set(expected)) > 5, "a model that repeats itself would prove little"
    assert list(generate(model, PROMPT, GREEDY)) == expected


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tokens_equal_those_of_each_prompt_alone_when_batched(attention: str, changes: dict[str, Any]) -> None:
    model = make_model(attention, **changes)
    expected = [greedy_without_cache(model, prompt, 40) for prompt in PROMPTS]
    assert continue_prompts(model, PROMPTS, GREEDY).finish() == expected


def test_sampled_text_of_a_prompt_is_the_same_when_others_are_beside_it() -> None:
    model = make_model()
    sampling = SamplingConfig(max_new_tokens=30, top_p=0.95, repetition_penalty=1.1, seed=4)
    alone = [list(generate(model, prompt, sampling)) for prompt in PROMPTS]
    assert continue_prompts(model, PROMPTS, sampling).finish() == alone
    assert continue_prompts(model, PROMPTS[::-1], sampling).finish() == alone[::-1]


def test_sampled_text_is_that_of_its_own_seed_when_rows_have_seeds() -> None:
    model, sampling = make_model(), SamplingConfig(max_new_tokens=20)
    texts = continue_prompts(model, [PROMPT, PROMPT, PROMPT], sampling, seeds=[0, 1, 0]).finish()
    assert texts[0] == texts[2] == list(generate(model, PROMPT, sampling))
    assert texts[1] == list(generate(model, PROMPT, SamplingConfig(max_new_tokens=20, seed=1)))
    assert texts[0] != texts[1]


def test_text_is_the_same_when_earlier_rows_have_left_the_batch() -> None:
    model = make_model()
    expected = [list(generate(model, prompt, GREEDY)) for prompt in PROMPTS]
    texts = continue_prompts(model, PROMPTS, GREEDY)
    shapes: list[tuple[int, int]] = []
    model.model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    for row, after in ((2, 3), (0, 7), (3, 7), (1, 40)):  # the longest first: its padding leaves with it
        while len(texts.written[row]) < after:
            texts.step()
        texts.end(row, "stop_text")
    assert shapes == [(4, 9), (4, 1), (4, 1), *[(3, 1)] * 4, *[(1, 1)] * 33]
    assert texts.written == [expected[0][:7], expected[1], expected[2][:3], expected[3][:7]]
    assert texts._cache.length == len(PROMPTS[1]) + 39


@pytest.mark.parametrize("changes", [KINDS["rotary"], KINDS["learned positions"], KINDS["sliding"]], ids=str)
def test_rows_fill_all_positions_when_the_model_has_a_limit(changes: dict[str, Any]) -> None:
    model = make_model(**{**changes, "max_position_embeddings": 12})
    texts = continue_prompts(model, PROMPTS, GREEDY)
    assert texts.finish() == [greedy_without_cache(model, prompt, 12 - len(prompt)) for prompt in PROMPTS]
    assert texts.ends == ["max_position_embeddings"] * 4


def test_rows_say_why_they_ended() -> None:
    model = make_model(max_position_embeddings=11)
    first = next(generate(model, PROMPTS[3], GREEDY))
    texts = continue_prompts(model, PROMPTS, SamplingConfig(max_new_tokens=4, temperature=0), stop_tokens=[first])
    texts.step()
    texts.end(0, "stop_text")
    texts.finish()
    assert texts.ends == ["stop_text", "max_new_tokens", "max_position_embeddings", "stop_token"]
    assert [len(written) for written in texts.written] == [1, 4, 2, 0]


def test_reason_is_the_last_that_was_given_when_a_row_has_ended_already() -> None:
    texts = continue_prompts(make_model(), [PROMPT], SamplingConfig(max_new_tokens=1))
    texts.step()
    assert (texts.rows, texts.ends) == ([], ["max_new_tokens"])
    texts.end(0, "stop_text")
    assert (texts.rows, texts.ends) == ([], ["stop_text"])


def test_row_ends_before_the_first_of_them_when_there_are_several_stop_tokens() -> None:
    model = make_model()
    tokens = list(generate(model, PROMPT, GREEDY))
    stops = [tokens[11], tokens[7], 63]
    expected = tokens[: min(tokens.index(stop) for stop in stops if stop in tokens)]
    assert 0 < len(expected) < 8
    assert list(generate(model, PROMPT, GREEDY, stop_tokens=stops)) == expected


def test_no_token_beyond_comes_when_the_tokenizer_has_fewer() -> None:
    model = make_model()
    assert max(generate(model, PROMPT, GREEDY)) >= 20
    assert max(generate(model, PROMPT, GREEDY, vocab_size=20)) < 20


def test_model_reads_one_position_at_a_time_when_prompt_is_done() -> None:
    model, lengths = make_model(), []
    model.model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    list(generate(model, PROMPT, SamplingConfig(max_new_tokens=4)))
    assert lengths == [5, 1, 1, 1]


def test_scores_are_of_the_last_position_alone_when_a_prompt_is_read() -> None:
    model, shapes = make_model(), []
    model.register_forward_hook(lambda *hooked: shapes.append(tuple(hooked[2].shape)))
    continue_prompts(model, PROMPTS, GREEDY).step()
    assert shapes == [(4, 1, 64)]


def test_token_is_yielded_before_the_next_is_computed_when_streamed() -> None:
    model, passes = make_model(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    stream = generate(model, PROMPT, SamplingConfig(max_new_tokens=4))
    next(stream)
    assert len(passes) == 1


def test_text_follows_the_seed_when_sampled() -> None:
    model = make_model()

    def text(seed: int) -> list[int]:
        return list(generate(model, PROMPT, SamplingConfig(max_new_tokens=20, seed=seed)))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_gradient_mode_is_the_callers_when_between_tokens() -> None:
    stream = generate(make_model(), PROMPT, SamplingConfig(max_new_tokens=2))
    next(stream)
    assert torch.is_grad_enabled()


def hugging_face_twin(model: Transformer) -> Any:
    transformers = pytest.importorskip("transformers")
    config = model.config
    twin = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
    )
    apart = {}
    for name, tensor in model.state_dict().items():
        parts = parameter_parts(name, tensor.shape, config)
        apart.update(zip(parts, tensor.split(list(parts.values())), strict=True))
    twin.load_state_dict(apart)
    return twin.eval()


def hugging_face_text(twin: Any, prompt: list[int], **settings: Any) -> list[int]:
    tokens = torch.tensor([prompt])
    output = twin.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=40, pad_token_id=0, **settings
    )
    written: list[int] = output[0, len(prompt) :].tolist()
    return written


def test_text_equals_that_of_hugging_face_when_greedy() -> None:
    model = make_model()
    twin = hugging_face_twin(model)
    expected = [hugging_face_text(twin, prompt) for prompt in PROMPTS]
    assert continue_prompts(model, PROMPTS, GREEDY).finish() == expected


def test_text_equals_that_of_hugging_face_when_repetition_is_penalised() -> None:
    model = make_model()
    twin = hugging_face_twin(model)
    expected = [hugging_face_text(twin, prompt, repetition_penalty=1.3) for prompt in PROMPTS]
    penalised = SamplingConfig(max_new_tokens=40, temperature=0, repetition_penalty=1.3)
    assert continue_prompts(model, PROMPTS, penalised).finish() == expected
    assert expected != [hugging_face_text(twin, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            [[]],
            "the prompt has no tokens: the model needs one to predict the next. Begin with the tokenizer's BOS token.",
        ),
        (
            [[1], []],
            "prompt 2 of 2 has no tokens: the model needs one to predict the next. Begin with the tokenizer's BOS "
            "token.",
        ),
        (
            [[1, 64]],
            "token 64 at position 1 of the prompt is outside the model's vocabulary of 64. "
            "Encode the prompt with the tokenizer that the model was trained with.",
        ),
        (
            [[1] * 12],
            "the prompt has 12 tokens, and model.max_position_embeddings is 12: the model knows no position beyond, "
            "and there is no room for a new token. Shorten it to at most 11 tokens.",
        ),
    ],
    ids=str,
)
def test_prompts_are_refused_when_they_cannot_be_continued(prompts: list[list[int]], message: str) -> None:
    config = make_model(max_position_embeddings=12).config
    with pytest.raises(GenerationError) as error:
        check_prompts(config, prompts)
    assert str(error.value) == message


def test_prompt_is_refused_at_once_when_streamed() -> None:
    with pytest.raises(GenerationError, match="the prompt has no tokens"):
        generate(make_model(), [], SamplingConfig())
