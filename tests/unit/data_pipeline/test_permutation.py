from __future__ import annotations

import math

import numpy as np
import pytest

from data_pipeline.errors import OrderError
from data_pipeline.permutation import SHUFFLED_BELOW, derive_key, permute

SIGMAS = 5
"""Deviations of a statistic that a fair permutation exceeds about once in two million keys."""
FROZEN_SMALL = [2, 0, 4, 1, 3]
FROZEN_LARGE = [836762539, 734377739, 438787412]


@pytest.mark.parametrize("seed", [0, 1])
def test_permute_is_a_bijection_when_the_domain_is_small(seed: int) -> None:
    for size in range(1, 301):
        image = permute(np.arange(size), size, derive_key(seed, size))
        assert sorted(image.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [4095, 4096, 4097, 8191, 8192, 8193, 10007, 65537, 100_003])
def test_permute_is_a_bijection_when_the_domain_has_size(size: int) -> None:
    image = permute(np.arange(size), size, derive_key(3, "rows"))
    assert np.array_equal(np.sort(image), np.arange(size))


@pytest.mark.parametrize("size", [2**40 + 1, 10**12, 2**61 + 3, 2**62])
def test_permute_stays_inside_and_apart_when_the_domain_is_huge(size: int) -> None:
    points = np.concatenate((np.arange(2000), size - 1 - np.arange(2000)))
    image = permute(points, size, derive_key(3, "rows"))
    assert image.min() >= 0
    assert image.max() < size
    assert len(np.unique(image)) == len(points)


@pytest.mark.parametrize("size", [1000, SHUFFLED_BELOW - 1, SHUFFLED_BELOW, 5000, 100_003])
def test_permute_looks_random_when_measured(size: int) -> None:
    image = permute(np.arange(size), size, derive_key(11, "statistics"))
    # Correlation of place and image, and of neighbours' images: standard deviation 1 / sqrt(n).
    for pairs in ((np.arange(size), image), (image[:-1], image[1:])):
        assert abs(np.corrcoef(*pairs)[0, 1]) < SIGMAS / math.sqrt(size)
    # Mean displacement of a random permutation is (n^2 - 1) / 3n, variance about n^2 / 18 / n.
    displacement = np.abs(image - np.arange(size)).mean()
    assert abs(displacement - (size**2 - 1) / (3 * size)) < SIGMAS * size / math.sqrt(18 * size)
    # A 10 x 10 contingency table of (place, image): 81 degrees of freedom.
    table, _, _ = np.histogram2d(np.arange(size), image, bins=10, range=[[0, size], [0, size]])
    chi_square = float(((table - size / 100) ** 2 / (size / 100)).sum())
    assert abs(chi_square - 81) < SIGMAS * math.sqrt(2 * 81)


def test_permute_is_uniform_when_keys_vary() -> None:
    keys = 6000
    counts = np.zeros(24)
    for number in range(keys):
        order = permute(np.arange(4), 4, derive_key(0, number))
        rank = sum(int((order[i + 1 :] < order[i]).sum()) * math.factorial(3 - i) for i in range(4))
        counts[rank] += 1
    chi_square = float(((counts - keys / 24) ** 2 / (keys / 24)).sum())
    assert abs(chi_square - 23) < SIGMAS * math.sqrt(2 * 23)


def test_permute_gives_the_same_when_asked_point_by_point() -> None:
    key = derive_key(5, "points")
    whole = permute(np.arange(5000), 5000, key)
    assert [int(permute(np.array([i]), 5000, key)[0]) for i in range(0, 5000, 211)] == whole[::211].tolist()


def test_permute_is_what_it_was_when_the_key_is_known() -> None:
    # Frozen: another result here would reorder the data of every run that exists. See plan.ORDER_VERSION.
    assert permute(np.arange(5), 5, derive_key(1, "frozen")).tolist() == FROZEN_SMALL
    assert permute(np.arange(3), 10**9, derive_key(1, "frozen")).tolist() == FROZEN_LARGE


def test_derive_key_differs_when_any_label_differs() -> None:
    keys = {
        derive_key(1, "a"),
        derive_key(2, "a"),
        derive_key(1, "b"),
        derive_key(1, "a", 0),
        derive_key(1, "a", 1),
    }
    assert len(keys) == 5


def test_permute_refuses_when_an_index_is_outside() -> None:
    with pytest.raises(OrderError, match=r"Indices 2 to 10 do not lie in \[0, 10\)"):
        permute(np.array([2, 10]), 10, derive_key(0))


def test_permute_refuses_when_there_is_nothing_to_permute() -> None:
    with pytest.raises(OrderError, match="Cannot permute 0 items"):
        permute(np.array([0]), 0, derive_key(0))
