"""The cache: a sequence in parts gives what one pass gives, rows and padding leave it, memory stays bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llm.config import ModelConfig
from llm.initialization import initialize
from llm.kv_cache import KeyValueCache, LayerCache
from llm.transformer import Transformer

CACHE_TOLERANCE = 1e-5
"""fp32 through two layers; the cached pass sums in another order."""
WINDOW = 5
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "sliding": {"sliding_window": WINDOW},
    "every other slides": {"sliding_window": WINDOW, "layer_types": ("full_attention", "sliding_attention")},
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
        **changes,
    )
    model = Transformer(config, attention)
    initialize(model, config, seed=1)
    return model


def make_tokens(T: int) -> Tensor:
    return torch.randint(0, 64, (3, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("parts", [[24], [5, 1, 1, 17], [1] * 24, [4, 8, 12]], ids=str)
@pytest.mark.parametrize("block_tokens", [1, 5, 256])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
@torch.no_grad()
def test_logits_equal_one_pass_when_sequence_comes_in_parts(
    changes: dict[str, Any], block_tokens: int, parts: list[int], documents: bool
) -> None:
    model, tokens = make_model(**changes), make_tokens(24)
    cache = KeyValueCache.of(model.config, block_tokens)
    ids = torch.tensor([[0] * 24, [0] * 9 + [1] * 15, [0] * 2 + [1] * 20 + [2] * 2])
    cached = [
        model.logits(part, part_ids if documents else None, cache)
        for part, part_ids in zip(tokens.split(parts, dim=1), ids.split(parts, dim=1), strict=True)
    ]
    expected = model.logits(tokens, ids if documents else None)
    assert cache.length == 24
    torch.testing.assert_close(torch.cat(cached, dim=1), expected, atol=CACHE_TOLERANCE, rtol=CACHE_TOLERANCE)


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
@torch.no_grad()
def test_logits_equal_those_of_the_rows_alone_when_rows_and_padding_have_left(changes: dict[str, Any]) -> None:
    model, tokens = make_model(**changes), make_tokens(20)
    ids = torch.ones_like(tokens)
    ids[0, :9] = ids[2, :7] = 0
    cache = KeyValueCache.of(model.config, block_tokens=2)
    positions = (ids.cumsum(dim=1) - 1).clamp(min=0)
    for start, end in ((0, 12), (12, 13), (13, 14)):
        model.logits(tokens[:, start:end], ids[:, start:end], cache, positions[:, start:end])
    cache.keep([2, 0], first=7)
    assert cache.length == 7
    later = model.logits(tokens[[2, 0], 14:], ids[[2, 0], 14:], cache, positions[[2, 0], 14:])
    for row, start, found in ((2, 7, later[0]), (0, 9, later[1])):
        alone = model.logits(tokens[row : row + 1, start:])[0, -6:]
        torch.testing.assert_close(found, alone, atol=CACHE_TOLERANCE, rtol=CACHE_TOLERANCE)


def append(cache: LayerCache, positions: int) -> tuple[Tensor, Tensor]:
    numbers = torch.arange(cache.seen, cache.seen + positions, dtype=torch.float32).reshape(1, -1, 1, 1)
    return cache.append(numbers.expand(2, -1, 1, 4), -numbers.expand(2, -1, 1, 4))


def test_memory_is_at_most_a_block_more_than_needed_when_the_sequence_grows() -> None:
    cache = LayerCache(block_tokens=8)
    for _ in range(50):
        append(cache, 1)
        assert cache.length <= cache.capacity <= cache.length + 8
    k_BSGK, v_BSGK = append(cache, 3)
    assert k_BSGK[1, :, 0, 3].tolist() == list(range(53))
    assert torch.equal(v_BSGK, -k_BSGK)


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize("prompt", [1, 40])
def test_memory_is_at_most_two_blocks_more_than_the_window_when_a_layer_slides(window: int, prompt: int) -> None:
    cache = LayerCache(block_tokens=8, window=window)
    append(cache, prompt)
    for _ in range(100):
        expected = cache.keys_after(1)
        k_BSGK, _ = append(cache, 1)
        assert k_BSGK.shape[1] == expected
        assert min(window, cache.seen) <= expected < window + 8 + 1
        assert k_BSGK[0, :, 0, 0].tolist() == list(range(cache.seen - expected, cache.seen))
        assert cache.capacity <= window + 2 * 8
    assert cache.seen == prompt + 100


def test_memory_moves_once_a_block_when_a_layer_slides() -> None:
    cache, places = LayerCache(block_tokens=8, window=16), set()
    for _ in range(160):
        places.add(append(cache, 1)[0].data_ptr())
    assert len(places) <= 160 / 8 + 1


def test_layers_that_do_not_slide_keep_all_when_others_slide() -> None:
    config = make_model(**KINDS["every other slides"]).config
    cache = KeyValueCache.of(config, block_tokens=2)
    for layer in cache.layers:
        append(layer, 30)
        append(layer, 1)
    assert [layer.length for layer in cache.layers] == [31, WINDOW]
