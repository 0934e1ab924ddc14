"""What may be measured: arrays that go together, refused with the example that is wrong.

Legend: N examples, C classes, L labels of which an example may have several, K tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm.errors import MetricsError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_SUM_TOLERANCE = 1e-3
"""Of the probabilities of an example: a softmax in fp32 is far below it, one in bf16 or a row of logits far above."""


def class_names(names: Sequence[str], least: int, what: str = "class") -> tuple[str, ...]:
    """The names, of which there must be some and no two alike."""
    if len(names) < least:
        raise MetricsError(
            f"measures got {len(names)} {what} names ({list(names)}): at least {least} must be told apart. "
            f"Pass `names` with one name for each {what} index."
        )
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise MetricsError(
            f"measures got the {what} name {twice!r} more than once: two rows of a table could not be told apart. "
            "Give each index a name of its own."
        )
    return tuple(names)


def class_probabilities(probabilities: ArrayLike, classes: int) -> FloatArray:
    """Probabilities of classes that exclude each other. Shape: (N, C)."""
    found_NC = _probabilities(probabilities, classes)
    sums_N = found_NC.sum(axis=1)
    wrong_N = np.abs(sums_N - 1) > _SUM_TOLERANCE
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise MetricsError(
            f"the probabilities of example {row} sum to {sums_N[row]:.6g}: those of classes that exclude each other "
            f"sum to 1, within {_SUM_TOLERANCE}. Pass the softmax of the logits, in float32 or wider."
        )
    return found_NC


def label_probabilities(probabilities: ArrayLike, labels: int) -> FloatArray:
    """Probabilities of labels of which an example may have several. Shape: (N, L)."""
    return _probabilities(probabilities, labels)


def class_labels(labels: ArrayLike, examples: int, classes: int, what: str = "label") -> IntArray:
    """Class indices. Shape: (N,)."""
    found_N = _whole(labels, what)
    if found_N.shape != (examples,):
        raise MetricsError(
            f"measures got {what}s of shape {found_N.shape}: one is needed for each of the {examples} predictions. "
            "Gather both from the same examples, in the same order."
        )
    wrong_N = (found_N < 0) | (found_N >= classes)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise MetricsError(
            f"{what} {row} is {found_N[row]}: with {classes} names it must lie from 0 to {classes - 1}. "
            "Leave out what has no label (-100), or name every class."
        )
    return found_N


def label_matrix(labels: ArrayLike, examples: int, columns: int) -> IntArray:
    """1 where an example has a label, 0 where it has not. Shape: (N, L)."""
    found_NL = _whole(labels, "label")
    if found_NL.shape != (examples, columns):
        raise MetricsError(
            f"measures got a label matrix of shape {found_NL.shape}: the probabilities have {(examples, columns)}. "
            "Pass one row for each example and one column for each label."
        )
    wrong_NL = (found_NL != 0) & (found_NL != 1)
    if wrong_NL.any():
        row, column = (int(place) for place in np.argwhere(wrong_NL)[0])
        raise MetricsError(
            f"label {column} of example {row} is {found_NL[row, column]}: an example has a label (1) or has not (0). "
            "Leave out examples whose labels are unknown."
        )
    return found_NL


def real_values(values: ArrayLike, what: str) -> FloatArray:
    """Finite numbers, one for each example. Shape: (N,)."""
    found_N = _finite(values, what)
    if found_N.ndim != 1:
        raise MetricsError(
            f"measures got {what} of shape {found_N.shape}: regression has one number for each example. "
            "Squeeze the last axis, or measure each target by itself."
        )
    return _some(found_N, what)


def same_length(first: Sequence[Any] | NDArray[Any], second: Sequence[Any] | NDArray[Any], words: str) -> None:
    """Refuse two columns of one table that differ in length; `words` names both."""
    if len(first) != len(second):
        raise MetricsError(
            f"measures got {words} of lengths {len(first)} and {len(second)}: they describe the same examples. "
            "Gather both from the same examples, in the same order."
        )


def _probabilities(probabilities: ArrayLike, columns: int) -> FloatArray:
    found = _finite(probabilities, "probabilities")
    if found.ndim != 2 or found.shape[1] != columns:
        raise MetricsError(
            f"measures got probabilities of shape {found.shape}: with {columns} names it must be "
            f"(examples, {columns}). Pass one row for each example and one column for each name."
        )
    _some(found, "probabilities")
    wrong = (found < 0) | (found > 1)
    if wrong.any():
        row, column = (int(place) for place in np.argwhere(wrong)[0])
        raise MetricsError(
            f"probability {column} of example {row} is {found[row, column]:.6g}: it must lie from 0 to 1. "
            "Pass the softmax or sigmoid of the logits."
        )
    return found


def _finite(values: ArrayLike, what: str) -> FloatArray:
    found = np.asarray(values, dtype=np.float64)
    wrong = ~np.isfinite(found)
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise MetricsError(
            f"measures got {what} of which the one at {list(place)} is {found[place]}: all must be finite. "
            "The model has diverged or the labels have gaps; take an earlier checkpoint, or leave the examples out."
        )
    return found


def _some(found: FloatArray, what: str) -> FloatArray:
    if not len(found):
        raise MetricsError(f"measures got no {what}: a mean needs one example. Check the dataset's split.")
    return found


def _whole(labels: ArrayLike, what: str) -> IntArray:
    found = np.asarray(labels)
    if found.dtype.kind not in "iub":
        raise MetricsError(
            f"measures got {what}s of dtype {found.dtype}: classes are counted, by whole numbers. "
            "Pass an integer array."
        )
    return found.astype(np.int64)
