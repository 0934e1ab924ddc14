"""Compiled blocks: the same loss, gradients and logits as without, and one compiled form for all layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from llm.compilation import compile_blocks
from llm.config import ModelConfig
from llm.initialization import initialize
from llm.kv_cache import KeyValueCache
from llm.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=31, hidden_size=24, num_hidden_layers=4, num_attention_heads=3, intermediate_size=64, qk_norm=True
)
TOLERANCE = 1e-5
"""fp32 sums in another order through four layers."""


def make_model() -> Transformer:
    model = Transformer(CONFIG, "sdpa")
    initialize(model, CONFIG, seed=3)
    return model


@pytest.fixture(scope="module")
def pair() -> tuple[Transformer, Transformer]:
    plain, compiled = make_model(), make_model()
    compile_blocks(compiled)
    return plain, compiled


def test_loss_and_gradients_are_the_same_when_compiled(pair: tuple[Transformer, Transformer]) -> None:
    tokens = torch.randint(0, 31, (2, 34), generator=torch.Generator().manual_seed(0))
    for model in pair:
        model(tokens[:, :-1], tokens[:, 1:]).objective_sum.backward()
    for (name, one), (_, other) in zip(pair[0].named_parameters(), pair[1].named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def test_one_compiled_form_serves_all_layers(pair: tuple[Transformer, Transformer]) -> None:
    from torch._dynamo.utils import counters

    _, compiled = pair
    tokens = torch.randint(0, 31, (2, 34), generator=torch.Generator().manual_seed(0))
    compiled(tokens[:, :-1], tokens[:, 1:])
    assert counters["stats"]["unique_graphs"] <= 2, "one form, and its second where the first layer's input differs"
    assert not counters["graph_break"]


def test_tokens_are_generated_without_compiling_when_there_is_a_cache(pair: tuple[Transformer, Transformer]) -> None:
    from torch._dynamo.utils import counters

    tokens = torch.randint(0, 31, (1, 12), generator=torch.Generator().manual_seed(0))
    graphs = counters["stats"]["unique_graphs"]
    caches = [KeyValueCache(4), KeyValueCache(4)]
    for start, end in ((0, 5), (5, 6), (6, 12)):
        one, other = (
            model.logits(tokens[:, start:end], cache=cache) for model, cache in zip(pair, caches, strict=True)
        )
        assert torch.equal(one, other)
    assert counters["stats"]["unique_graphs"] == graphs


def test_layers_stay_compiled_when_kinds_and_sizes_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # counts as any other
    torch._dynamo.reset()
    config = replace(CONFIG, sliding_window=5, layer_types=("sliding_attention", "full_attention"))
    model = Transformer(config, "sdpa")
    initialize(model, config, seed=3)
    compile_blocks(model)
    torch._dynamo.utils.counters.clear()
    for rows, length in ((8, 16), (3, 16), (8, 9), (1, 16), (2, 11)):
        tokens = torch.zeros(rows, length, dtype=torch.long)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                model(tokens, tokens)
    assert not torch._dynamo.utils.counters["unimplemented"]
    torch._dynamo.reset()
