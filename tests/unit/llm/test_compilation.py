"""Compiled blocks: the same loss, gradients and logits as without, and one compiled form for all layers."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from llm.compilation import compilation_seconds, compile_blocks
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


@pytest.mark.slow
def test_compilation_seconds_are_those_of_both_passes_and_end_with_them() -> None:
    """Another width than above, and without the cache that would give the backward pass together with the forward."""
    from torch._functorch import config as autograd

    config = replace(CONFIG, hidden_size=30, num_hidden_layers=2)
    model = Transformer(config, "sdpa")
    initialize(model, config, seed=3)
    compile_blocks(model)
    tokens = torch.randint(0, 31, (2, 34), generator=torch.Generator().manual_seed(0))

    def timed_step() -> tuple[float, float, float]:
        """Seconds of a step, and of compiling its forward and its backward pass."""
        began, compiled = time.perf_counter(), [compilation_seconds()]
        objective = model(tokens[:, :-1], tokens[:, 1:]).objective_sum
        compiled.append(compilation_seconds())
        objective.backward()
        compiled.append(compilation_seconds())
        return time.perf_counter() - began, compiled[1] - compiled[0], compiled[2] - compiled[1]

    with autograd.patch(enable_autograd_cache=False):
        whole_seconds, forward_seconds, backward_seconds = timed_step()
        again = timed_step()[1:]
    assert forward_seconds > 0
    assert backward_seconds > 0
    assert again == (0.0, 0.0)
    assert 0.5 * whole_seconds < forward_seconds + backward_seconds < whole_seconds  # the step itself is milliseconds


def test_compilation_seconds_are_0_and_load_no_compiler_when_nothing_was_compiled() -> None:
    program = (
        "import sys\n"
        "from llm.compilation import compilation_seconds\n"
        "print(compilation_seconds(), [name for name in sys.modules if name.startswith('torch._dynamo')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0.0 []\n"


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


@pytest.mark.slow
def test_loss_and_gradients_are_the_same_when_layers_with_experts_are_compiled() -> None:
    config = replace(CONFIG, num_experts=4, moe_intermediate_size=16, num_hidden_layers=2)
    tokens = torch.randint(0, 31, (2, 34), generator=torch.Generator().manual_seed(0))
    models = []
    for compiled in (False, True):
        model = Transformer(config, "sdpa")
        initialize(model, config, seed=3)
        if compiled:
            compile_blocks(model)
        model(tokens[:, :-1], tokens[:, 1:]).objective_sum.backward()
        models.append(model)
    for (name, one), (_, other) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
