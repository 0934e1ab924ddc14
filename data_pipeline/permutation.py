"""Keyed permutations of [0, n) that are evaluated at any point without storing them.

Small domains are shuffled outright (Fisher-Yates), because a Feistel network is biased there. Large ones go
through a Feistel network on the next power of two; results outside the domain are sent through again until
they fall inside (cycle-walking, Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import OrderError

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

SHUFFLED_BELOW = 4096
"""Domains smaller than this are shuffled outright."""
ROUNDS = 6
"""Feistel rounds; even, so that unequal halves end where they began."""
LARGEST_DOMAIN = 1 << 62

_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_INCREMENT = 0x9E3779B97F4A7C15


def derive_key(seed: int, *labels: str | int) -> bytes:
    """Derives a key from a seed and what the key is for.

    Args:
        seed: The run's seed.
        labels: Words and numbers that tell this key from others.

    Returns:
        48 bytes.
    """
    return hashlib.blake2b(repr((seed, *labels)).encode(), digest_size=8 * ROUNDS).digest()


def permute(indices: Int64Array, size: int, key: bytes) -> Int64Array:
    """Applies the permutation of [0, size) that belongs to a key.

    Args:
        indices: Points of [0, size). Shape: any.
        size: The domain.
        key: As from `derive_key`.

    Returns:
        Their images, same shape, int64.
    """
    if not 1 <= size <= LARGEST_DOMAIN:
        raise OrderError(f"Cannot permute {size} items: between 1 and 2^62 are possible.")
    if indices.size == 0:
        return indices.astype(np.int64)
    if indices.min() < 0 or indices.max() >= size:
        raise OrderError(f"Indices {indices.min()} to {indices.max()} do not lie in [0, {size}).")
    if size < SHUFFLED_BELOW:
        return _shuffled(size, key)[indices]
    return _walk(indices.astype(np.uint64), size, key).astype(np.int64)


@lru_cache(maxsize=256)
def _shuffled(size: int, key: bytes) -> Int64Array:
    """Fisher-Yates shuffle of [0, size), with numbers from SplitMix64 (bias below 2^-20)."""
    state = np.uint64(int.from_bytes(key[:8], "little"))
    with np.errstate(over="ignore"):
        counter = state + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_INCREMENT)
        numbers = _mix(counter) >> np.uint64(32)
    picks = np.right_shift(numbers * np.arange(1, size + 1, dtype=np.uint64), np.uint64(32)).tolist()
    table = list(range(size))
    for last in range(size - 1, 0, -1):
        other = picks[last]
        table[last], table[other] = table[other], table[last]
    result = np.array(table, dtype=np.int64)
    result.flags.writeable = False
    return result


def _walk(values: UInt64Array, size: int, key: bytes) -> UInt64Array:
    bits = (size - 1).bit_length()
    keys = np.frombuffer(key, dtype="<u8").astype(np.uint64)
    result = _feistel(values, bits, keys)
    outside = result >= np.uint64(size)
    while outside.any():
        result[outside] = _feistel(result[outside], bits, keys)
        outside = result >= np.uint64(size)
    return result


def _feistel(values: UInt64Array, bits: int, keys: UInt64Array) -> UInt64Array:
    """Permutes [0, 2^bits); where `bits` is odd the halves differ by one and swap widths every round."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    left = values >> np.uint64(right_bits)
    right = values & np.uint64((1 << right_bits) - 1)
    for key in keys:
        scrambled = _mix(right ^ key) >> np.uint64(64 - left_bits)
        left, right = right, left ^ scrambled
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right


def _mix(values: UInt64Array) -> UInt64Array:
    """Finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIER_1
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIER_2
    return values ^ (values >> np.uint64(31))
