"""Outputs that look like a model's, and scikit-learn without its warnings as the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@pytest.fixture
def classes() -> Callable[..., tuple[FloatArray, IntArray]]:
    """Makes probabilities (N, C) and labels (N,)."""

    def make(
        examples: int, classes: int, *, seed: int = 0, present: int | None = None, decimals: int = 12
    ) -> tuple[FloatArray, IntArray]:
        """Labels are of the first `present` classes; few decimals make ties."""
        random = np.random.default_rng(seed)
        labels_N = random.integers(present or classes, size=examples)
        scores_NC = random.normal(size=(examples, classes))
        scores_NC[np.arange(examples), labels_N] += 1
        rounded_NC = np.round(np.exp(scores_NC), decimals) + 10.0**-decimals
        return rounded_NC / rounded_NC.sum(axis=1, keepdims=True), labels_N

    return make


@pytest.fixture
def reference() -> Iterator[Callable[..., Any]]:
    """Calls scikit-learn; ours must not warn, it may."""

    def call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield call
