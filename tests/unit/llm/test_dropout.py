"""Dropout by key: the right fraction, independent places, and the same elements however rows are divided."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llm.config import ModelConfig
from llm.dropout import Dropout, drop, layer_keys, row_keys
from llm.initialization import initialize
from llm.transformer import Transformer

INDICES = torch.arange(8)
FOUR_SIGMA = 4.0
"""A chance of 6e-5 for a fair mask, and the masks are the same in every run."""
REFERENCE_TOLERANCE = 1e-5
"""fp32 through two layers, with rows in other products."""


def dropped(keys_B: Tensor, place: int = 0, fraction: float = 0.1, size: int = 1 << 14) -> Tensor:
    return drop(torch.ones(len(keys_B), size), Dropout(keys_B, place, fraction)) == 0


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_elements_are_dropped_at_the_rate_asked_for(fraction: float) -> None:
    rates_B = dropped(row_keys(7, 3, INDICES), fraction=fraction).double().mean(dim=1)
    sigma = (fraction * (1 - fraction) / (1 << 14)) ** 0.5
    assert (rates_B - fraction).abs().max() < FOUR_SIGMA * sigma
    assert (rates_B.mean() - fraction).abs() < FOUR_SIGMA * sigma / len(INDICES) ** 0.5


def test_kept_elements_are_scaled_so_that_the_mean_stays() -> None:
    kept = drop(torch.full((1, 100), 3.0), Dropout(row_keys(7, 3, INDICES[:1]), 0, 0.25))
    assert set(kept.unique().tolist()) == {0.0, 4.0}


@pytest.mark.parametrize("changed", ["seed", "step", "sequence", "layer", "place"])
def test_masks_are_independent_when_anything_differs(changed: str) -> None:
    def mask(**change: Any) -> Tensor:
        is_ = {"seed": 7, "step": 3, "sequence": 5, "layer": 2, "place": 1, **change}
        keys = layer_keys(row_keys(is_["seed"], is_["step"], torch.tensor([is_["sequence"]])), is_["layer"])
        return dropped(keys, is_["place"], fraction=0.5)

    one, other = mask(), mask(**{changed: 4})
    together = (one & other).double().mean().item()
    assert abs(together - 0.25) < FOUR_SIGMA * (0.25 * 0.75 / (1 << 14)) ** 0.5


def test_gradient_is_zero_exactly_where_elements_were_dropped() -> None:
    x = torch.ones(1, 64, requires_grad=True)
    y = drop(x, Dropout(row_keys(0, 1, INDICES[:1]), 0, 0.5))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())
    assert 0 < int((y == 0).sum()) < 64


def make_model(**changes: Any) -> Transformer:
    config = ModelConfig(
        vocab_size=31,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=64,
        initializer_range=0.1,
        **{"embedding_dropout": 0.1, "attention_dropout": 0.2, "residual_dropout": 0.3, **changes},
    )
    model = Transformer(config, "eager")
    initialize(model, config, seed=3)
    return model


def objective(model: Transformer, rows: slice, *, keys: bool = True) -> Tensor:
    tokens = torch.randint(0, 31, (8, 18), generator=torch.Generator().manual_seed(0))[rows]
    keys_B = row_keys(7, 3, INDICES[rows]) if keys else None
    sums = model(tokens[:, :-1], tokens[:, 1:], dropout_keys_B=keys_B)
    assert not isinstance(sums, Tensor)
    return sums.objective_sum


@pytest.mark.parametrize("place", ["embedding_dropout", "attention_dropout", "residual_dropout"])
def test_each_place_drops_when_it_alone_is_asked_to(place: str) -> None:
    none: dict[str, float] = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
    model = make_model(**{**none, place: 0.3})
    assert (objective(model, slice(8)) - objective(model, slice(8), keys=False)).abs() > 0.01


def test_loss_and_gradients_are_the_same_when_rows_are_divided_otherwise() -> None:
    whole, parts = make_model(), make_model()
    together = objective(whole, slice(8))
    together.backward()
    apart = [objective(parts, rows) for rows in (slice(0, 3), slice(3, 4), slice(4, 8))]
    for part in apart:
        part.backward()
    torch.testing.assert_close(together, sum(apart), rtol=REFERENCE_TOLERANCE, atol=0.0)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=REFERENCE_TOLERANCE, atol=REFERENCE_TOLERANCE)


def test_elements_stay_the_same_when_compiled_for_any_shape() -> None:
    @torch.compile(dynamic=True)
    def compiled(x: Tensor, keys_B: Tensor) -> Tensor:
        return drop(x, Dropout(keys_B, 1, 0.1))

    for rows, length in ((2, 33), (3, 20)):
        x, keys_B = torch.ones(rows, length, 32), row_keys(7, 3, INDICES[:rows])
        assert torch.equal(compiled(x, keys_B), drop(x, Dropout(keys_B, 1, 0.1)))
