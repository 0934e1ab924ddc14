"""Single layers: precision under bf16, cheap construction."""

from __future__ import annotations

import pytest
import torch

from llm.layers import Embedding, LayerNorm, Linear, RMSNorm

BF16_TOLERANCE = 2**-8
"""Half a unit in the last place of bf16: one rounding of a result computed in fp32."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_reduces_in_fp32_when_input_is_narrow(dtype: torch.dtype) -> None:
    x = (torch.randn(3, 4096, generator=torch.Generator().manual_seed(2)) * 10).to(dtype)
    norm = RMSNorm(4096, 1e-5)
    torch.nn.init.constant_(norm.weight, 1.5)
    mean_square = x.double().square().mean(dim=-1, keepdim=True)
    expected = (1.5 * x.double() / (mean_square + 1e-5).sqrt()).float()
    tolerance = 1e-6 if dtype == torch.float32 else BF16_TOLERANCE
    actual = norm.to(dtype)(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, atol=1e-6, rtol=tolerance)


def test_product_stays_narrow_when_a_wider_bias_is_added_under_autocast() -> None:
    layer = Linear(8, 4, bias=True)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = layer(torch.ones(2, 8))
    assert product.dtype == torch.bfloat16
    assert torch.equal(product.float(), torch.full((2, 4), 4.5))


def test_construction_draws_no_random_numbers_when_layers_are_made() -> None:
    before = torch.get_rng_state()
    Linear(8, 4, bias=True), Embedding(9, 8), RMSNorm(8, 1e-5), LayerNorm(8, 1e-5)
    assert torch.equal(torch.get_rng_state(), before)


def test_product_stays_narrow_when_a_bias_is_added_under_autocast() -> None:
    layer = Linear(8, 4, bias=True)
    for parameter in layer.parameters():
        torch.nn.init.ones_(parameter)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(2, 8)).dtype == torch.bfloat16
