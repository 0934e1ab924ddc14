"""Dropout whose masks follow from the sequence, not from the machine.

A generator draws other numbers wherever rows are divided otherwise. Here the mask of a row is a hash of the row's key
(seed, step and sequence), the place in the model and the element, so that any number of workers, any micro-batch, a
recomputed layer and a resumed run drop the same elements.

Legend: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_BITS = 24


def _wrapped(number: int) -> int:
    """A whole number as int64 holds it."""
    return (number + 2**63) % 2**64 - 2**63


_GOLDEN, _FIRST, _SECOND = (_wrapped(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Constants of SplitMix64."""


class Dropout(NamedTuple):
    """One place where elements are dropped."""

    keys_B: Tensor  # noqa: N815
    """int64, one for each row."""
    place: int
    """Number of the place among those with the same keys."""
    fraction: float
    """Of the elements that are set to zero."""


def drop(x: Tensor, dropout: Dropout) -> Tensor:
    """Set a fraction of the elements of each row to zero and scale the others up (arXiv:1207.0580).

    Shape: (B, ...) -> (B, ...), same dtype.
    """
    kept: Tensor = _kept_elements(dropout.keys_B, dropout.place, round(dropout.fraction * 2**_BITS), x.shape)
    dropped: Tensor = x * kept * (1.0 / (1.0 - dropout.fraction))
    return dropped


# An operator of its own, closed to the compiler: inductor turns `arange * _GOLDEN` into an index of its loop, whose
# overflow is undefined in C++, and the loop then ends early and leaves elements unwritten.
@torch.library.custom_op("longhaul::kept_elements", mutates_args=())
def _kept_elements(keys_B: Tensor, place: int, least: int, shape: Sequence[int]) -> Tensor:
    """Where the elements' numbers are at least so large. Shape: as given, bool."""
    return _uniform_bits(keys_B, place, torch.Size(shape)) >= least


@_kept_elements.register_fake
def _kept_elements_shape(keys_B: Tensor, place: int, least: int, shape: Sequence[int]) -> Tensor:
    return keys_B.new_empty(shape, dtype=torch.bool)


def row_keys(seed: int, step: int, indices: Tensor) -> Tensor:
    """Key of each sequence of a step. Shape: (B,) int64 -> (B,) int64."""
    return _mixed(_mixed(indices + _wrapped(seed * _GOLDEN)) + step)


def layer_keys(keys_B: Tensor, layer: int) -> Tensor:
    """Keys of rows in one layer, so that the layers' code need not know its number. Shape: (B,) -> (B,)."""
    return _mixed(keys_B + _wrapped((layer + 1) * _FIRST))


def _uniform_bits(keys_B: Tensor, place: int, shape: torch.Size) -> Tensor:
    """Whole numbers in [0, 2^24), even over all of them. Shape: as given."""
    rows_B = _mixed(keys_B + _wrapped((place + 1) * _SECOND))
    elements = torch.arange(shape[1:].numel(), device=rows_B.device)
    bits = _shifted(_mixed(rows_B[:, None] + elements * _GOLDEN), 64 - _BITS)
    return bits.view(shape)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014), in int64 that wraps around."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; that of int64 tensors keeps the sign."""
    shifted: Tensor = (x >> bits) & ((1 << (64 - bits)) - 1)
    return shifted
