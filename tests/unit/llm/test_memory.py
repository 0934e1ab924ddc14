"""Bytes of the loss and of the cache, against what is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from llm.config import ModelConfig
from llm.kv_cache import KeyValueCache
from llm.loss import LossRule, LossSums, linear_cross_entropy_sums
from llm.memory import Arithmetic, MicroBatch, kv_cache_bytes, loss_bytes, loss_chunk_rows
from llm.model_config import LayerType

ROWS, WIDTH, VOCABULARY = 256, 64, 1000
TOLERANCE = 0.01
"""A few numbers for each row, beside some thousand for its logits."""
DTYPE: dict[Arithmetic, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}
BLOCK = 16
CACHED = ModelConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)


def allocated(profiler: profile) -> tuple[int, int]:
    """Most and last bytes that were allocated since the profile began."""
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak, held


def measured(arithmetic: Arithmetic, rule: LossRule, chunk_rows: int) -> tuple[int, int]:
    """Peaks of the forward and of the backward pass."""
    hidden = torch.randn(1, ROWS, WIDTH).to(DTYPE[arithmetic]).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH).to(DTYPE[arithmetic]).requires_grad_()
    targets, weights = torch.zeros(1, ROWS, dtype=torch.long), torch.ones(1, ROWS)

    def loss() -> LossSums:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic == "autocast"):
            return linear_cross_entropy_sums(hidden, weight, targets, weights, rule, chunk_rows)

    loss().objective_sum.backward()
    hidden.grad = weight.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        sums = loss()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
        sums.objective_sum.backward()
    return allocated(forward)[0], allocated(backward)[0]


@pytest.mark.parametrize("arithmetic", DTYPE)
@pytest.mark.parametrize("rows", [4, 64, ROWS])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logits_scaling": 2.0},
        {"final_logit_softcapping": 5.0},
        {"logits_scaling": 2.0, "final_logit_softcapping": 5.0},
    ],
    ids=["plain", "scaled", "capped", "both"],
)
def test_loss_holds_what_is_predicted_when_chunks_have_any_size(
    fields: dict[str, float], rows: int, arithmetic: Arithmetic
) -> None:
    config = ModelConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_attention_heads=4, **fields)  # type: ignore[arg-type]
    batch = MicroBatch(sequences=1, seq_len=ROWS, arithmetic=arithmetic, attention="sdpa")
    expected = loss_bytes(config, batch, rows)
    rule = LossRule(1 / config.logits_scaling, config.final_logit_softcapping)
    forward, backward = measured(arithmetic, rule, rows)
    hidden = ROWS * WIDTH * DTYPE[arithmetic].itemsize  # was there before
    assert expected.kept + expected.forward - hidden == pytest.approx(forward, rel=TOLERANCE)
    assert expected.backward == pytest.approx(backward, rel=TOLERANCE)


def grown(config: ModelConfig, lengths: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Positions seen, and bytes held, after each append of so many."""
    cache = KeyValueCache.of(config, BLOCK)
    for length in lengths:
        new = torch.zeros(5, length, 2, 8, dtype=torch.bfloat16)
        held = [tensor for layer in cache.layers for tensor in layer.append(new, new)]
        yield cache.length, sum(tensor.untyped_storage().nbytes() for tensor in held)


def cache_bytes(config: ModelConfig, positions: int) -> int:
    return kv_cache_bytes(config, sequences=5, positions=positions, element_bytes=2, block_tokens=BLOCK)


@pytest.mark.parametrize("positions", [1, 16, 17])
def test_cache_holds_what_is_predicted_when_it_is_filled(positions: int) -> None:
    ((seen, held),) = grown(CACHED, [positions])
    assert held == cache_bytes(CACHED, seen)


@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_cache_reaches_what_is_predicted_and_no_more_when_tokens_come_one_by_one(kind: LayerType) -> None:
    config = replace(CACHED, sliding_window=7, layer_types=(kind, "sliding_attention"))
    each = list(grown(config, [1] * 100))
    assert all(held <= cache_bytes(config, seen) for seen, held in each)
    assert any(held == cache_bytes(config, seen) for seen, held in each[BLOCK:])


@pytest.mark.parametrize(
    ("vocabulary", "width", "rows"), [(8192, 256, 2048), (131_072, 256, 128), (131_072, 1024, 256), (1 << 30, 3, 1)]
)
def test_chunks_of_the_loss_have_rows_enough_for_products_and_for_passes_over_the_weight(
    vocabulary: int, width: int, rows: int
) -> None:
    assert loss_chunk_rows(vocabulary, width) == rows
