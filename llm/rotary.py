"""Rotary positions (RoPE, arXiv:2104.09864) in Llama's half-rotation form, and how their frequencies are stretched.

Legend: B batch, T sequence, N heads of any kind, K head size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from llm.model_config import RopeScaling

LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR = 1.0, 4.0
BETA_FAST, BETA_SLOW = 32.0, 1.0


class Rotary(NamedTuple):
    """Cosine and sine of every position's angles, in fp32 whatever the dtype of the model."""

    cos: Tensor
    """Shape: (B or 1, T, 1, K / 2)."""
    sin: Tensor
    """Shape: (B or 1, T, 1, K / 2)."""


def rotary_tables(positions_BT: Tensor, head_size: int, theta: float, scaling: RopeScaling | None = None) -> Rotary:
    """Angles of positions.

    Made anew in each forward pass, a few thousand numbers: a buffer would lose its precision when someone
    casts the module to bf16, and would need a largest length. Documents in a sequence need not restart the
    positions: scores depend on differences only, so a document's attention is the same wherever it stands.

    Args:
        positions_BT: Whole numbers, of any dtype.
        head_size: K, even.
        theta: Base of the frequencies.
        scaling: How they are stretched.
    """
    frequencies_K = rotary_frequencies(head_size, theta, scaling).to(positions_BT.device)
    angles_BT1K = positions_BT[:, :, None, None].float() * frequencies_K
    factor = attention_factor(scaling)
    return Rotary(angles_BT1K.cos() * factor, angles_BT1K.sin() * factor)


def rotary_frequencies(head_size: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians per position of each pair. Shape: (K / 2,), fp32, on the CPU."""
    pairs = torch.arange(0, head_size, 2, dtype=torch.float32)
    frequencies_K = 1.0 / theta ** (pairs / head_size)
    if scaling is None:
        return frequencies_K
    if scaling.rope_type == "linear":
        return frequencies_K / scaling.factor
    if scaling.rope_type == "llama3":
        return _by_wavelength(frequencies_K, scaling)
    return _by_turns(frequencies_K, head_size, theta, scaling)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cosines and sines are multiplied by: YaRN's temperature (arXiv:2309.00071, eq. 22), 1 for the others."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0


def rotate(x_BTNK: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs (i, i + K/2) of each head by their position's angle, computed in fp32; dtype is kept."""
    left_BTNK, right_BTNK = x_BTNK.chunk(2, dim=-1)
    cos_BT1K, sin_BT1K = rotary
    turned_left = left_BTNK * cos_BT1K - right_BTNK * sin_BT1K
    turned_right = right_BTNK * cos_BT1K + left_BTNK * sin_BT1K
    return torch.cat((turned_left, turned_right), dim=-1).to(x_BTNK.dtype)


def _by_wavelength(frequencies_K: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: short wavelengths stay, long ones are stretched, those between are mixed (arXiv:2407.21783)."""
    original = scaling.original_max_position_embeddings
    assert original is not None
    low = LOW_FREQ_FACTOR if scaling.low_freq_factor is None else scaling.low_freq_factor
    high = HIGH_FREQ_FACTOR if scaling.high_freq_factor is None else scaling.high_freq_factor
    wavelengths_K = 2 * math.pi / frequencies_K
    kept_K = ((original / wavelengths_K - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept_K) * frequencies_K / scaling.factor + kept_K * frequencies_K


def _by_turns(frequencies_K: Tensor, head_size: int, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN: pairs that turn often within the original length stay, those that hardly turn are stretched."""
    original = scaling.original_max_position_embeddings
    assert original is not None

    def pair_of(turns: float) -> float:
        return head_size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_of(BETA_FAST if scaling.beta_fast is None else scaling.beta_fast)), 0)
    last = min(math.ceil(pair_of(BETA_SLOW if scaling.beta_slow is None else scaling.beta_slow)), head_size - 1)
    ramp_K = torch.arange(head_size // 2, dtype=torch.float32) - first
    stretched_K = (ramp_K / max(last - first, 0.001)).clamp(0.0, 1.0)
    return stretched_K * frequencies_K / scaling.factor + (1 - stretched_K) * frequencies_K
