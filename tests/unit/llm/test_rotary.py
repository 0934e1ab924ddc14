"""Rotary positions: relative, exact in bf16, and stretched as in Hugging Face."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from llm.model_config import RopeScaling
from llm.rotary import Rotary, attention_factor, rotary_frequencies, rotary_tables, rotate

ROTATION_TOLERANCE = 1e-5
"""fp32 angles up to 60 radians carry an error of about 4e-6."""
FREQUENCY_TOLERANCE = 1e-6
"""fp32 arithmetic of a few operations, in another order."""
ORIGINAL = {"original_max_position_embeddings": 512}


def tables(start: int, length: int, head_size: int) -> Rotary:
    return rotary_tables(torch.arange(start, start + length)[None], head_size, 1e4)


def test_scores_depend_on_distance_only_when_rotated() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))

    def score(query_position: int, key_position: int) -> torch.Tensor:
        turned_q = rotate(q, tables(query_position, 1, 16))
        turned_k = rotate(k, tables(key_position, 1, 16))
        return (turned_q * turned_k).sum()

    torch.testing.assert_close(score(7, 3), score(60, 56), atol=ROTATION_TOLERANCE, rtol=ROTATION_TOLERANCE)
    assert abs(score(7, 3) - score(8, 3)) > 100 * ROTATION_TOLERANCE


def test_rotation_turns_first_pair_by_position_when_heads_have_two_numbers() -> None:
    x_BTHK = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)
    angles = torch.tensor([4.0, 5.0, 6.0])
    expected = torch.stack([angles.cos(), angles.sin()], dim=-1)[None, :, None]
    torch.testing.assert_close(rotate(x_BTHK, tables(4, 3, 2)), expected)


def test_rotation_is_computed_in_fp32_when_heads_are_bf16() -> None:
    x_BTHK = torch.randn(1, 50, 2, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    rotary = tables(2000, 50, 8)
    assert rotary.cos.dtype == torch.float32
    expected = rotate(x_BTHK.float(), rotary).bfloat16()
    assert torch.equal(rotate(x_BTHK, rotary), expected)


def test_rows_are_turned_each_by_its_own_positions_when_these_differ() -> None:
    x_BTHK = torch.randn(2, 3, 1, 8, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[0, 1, 2], [5, 6, 9]])
    together = rotate(x_BTHK, rotary_tables(positions, 8, 1e4))
    for row in range(2):
        alone = rotate(x_BTHK[row : row + 1], rotary_tables(positions[row : row + 1], 8, 1e4))
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(rope_type="linear", factor=4.0),
        RopeScaling(rope_type="llama3", factor=8.0, **ORIGINAL),
        RopeScaling(rope_type="llama3", factor=32.0, low_freq_factor=2.0, high_freq_factor=8.0, **ORIGINAL),
        RopeScaling(rope_type="yarn", factor=4.0, **ORIGINAL),
        RopeScaling(rope_type="yarn", factor=16.0, beta_fast=24.0, beta_slow=2.0, attention_factor=1.5, **ORIGINAL),
    ],
    ids=lambda scaling: f"{scaling.rope_type}-{scaling.factor:g}",
)
def test_frequencies_equal_hugging_face_when_stretched(scaling: RopeScaling) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    defaults: dict[str, Any] = (
        {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if scaling.rope_type == "llama3" else {}
    )
    given = {name: value for name, value in asdict(scaling).items() if value is not None}
    config = transformers.LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 5e5, **defaults, **given},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling.rope_type](config, torch.device("cpu"))
    found = rotary_frequencies(64, 5e5, scaling)
    torch.testing.assert_close(found, frequencies, rtol=FREQUENCY_TOLERANCE, atol=0.0)
    assert attention_factor(scaling) == pytest.approx(factor, rel=FREQUENCY_TOLERANCE)
    assert not torch.allclose(found, rotary_frequencies(64, 5e5))
