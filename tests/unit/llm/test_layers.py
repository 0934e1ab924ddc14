"""Single layers: precision under bf16, relative positions, cheap construction."""

from __future__ import annotations

import pytest
import torch

from llm.layers import Embedding, Linear, RMSNorm, rotary_tables, rotate

CPU = torch.device("cpu")
ROTATION_TOLERANCE = 1e-5
"""fp32 angles up to 60 radians carry an error of about 4e-6."""
BF16_TOLERANCE = 2**-8
"""Half a unit in the last place of bf16: one rounding of a result computed in fp32."""


def test_scores_depend_on_distance_only_when_rotated() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))

    def score(query_position: int, key_position: int) -> torch.Tensor:
        turned_q = rotate(q, rotary_tables(query_position, 1, 16, 1e4, CPU))
        turned_k = rotate(k, rotary_tables(key_position, 1, 16, 1e4, CPU))
        return (turned_q * turned_k).sum()

    torch.testing.assert_close(score(7, 3), score(60, 56), atol=ROTATION_TOLERANCE, rtol=ROTATION_TOLERANCE)
    assert abs(score(7, 3) - score(8, 3)) > 100 * ROTATION_TOLERANCE


def test_rotation_turns_first_pair_by_position_when_heads_have_two_numbers() -> None:
    x_BTHK = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)
    angles = torch.tensor([4.0, 5.0, 6.0])
    expected = torch.stack([angles.cos(), angles.sin()], dim=-1)[None, :, None]
    torch.testing.assert_close(rotate(x_BTHK, rotary_tables(4, 3, 2, 1e4, CPU)), expected)


def test_rotation_is_computed_in_fp32_when_heads_are_bf16() -> None:
    x_BTHK = torch.randn(1, 50, 2, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    rotary = rotary_tables(2000, 50, 8, 1e4, CPU)
    assert rotary.cos.dtype == torch.float32
    expected = rotate(x_BTHK.float(), rotary).bfloat16()
    assert torch.equal(rotate(x_BTHK, rotary), expected)


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


def test_construction_draws_no_random_numbers_when_layers_are_made() -> None:
    before = torch.get_rng_state()
    Linear(8, 4), Embedding(9, 8), RMSNorm(8, 1e-5)
    assert torch.equal(torch.get_rng_state(), before)
