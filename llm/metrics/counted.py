"""Precision, recall and F1 from counts, of many bootstrap draws at once; as in scikit-learn with zero_division=0.

Legend: N examples, R draws, K classes, labels or tags.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from llm.metrics.inputs import FloatArray, IntArray
from llm.metrics.measured import Cell, Table

_DRAWN_CONFUSION = 40  # classes


class GroupSums:
    """Sums what examples with the same key have, for many columns at once.

    Args:
        keys_N: The group of each example.
        groups: K, the number of groups; one without examples sums to 0.
    """

    def __init__(self, keys_N: IntArray, groups: int) -> None:
        self._order = np.argsort(keys_N, kind="stable")
        self._present, self._starts = np.unique(keys_N[self._order], return_index=True)
        self._groups = groups

    def __call__(self, values_NR: FloatArray) -> FloatArray:
        """The sums. Shape: (K, R)."""
        sums_KR = np.zeros((self._groups, values_NR.shape[1]))
        if len(self._present):
            sums_KR[self._present] = np.add.reduceat(values_NR[self._order], self._starts, axis=0)
        return sums_KR


def ratio(part: ArrayLike, whole: ArrayLike, otherwise: float = 0.0) -> FloatArray:
    """Part by whole; `otherwise` where the whole is 0."""
    parts, wholes = np.broadcast_arrays(np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64))
    found: FloatArray = np.divide(parts, wholes, out=np.full(wholes.shape, otherwise), where=wholes != 0)
    return found


def defined_mean(values_KR: FloatArray) -> FloatArray:
    """The mean over K of what is not NaN; NaN where nothing is. Shape: (R,), or none of one column (K,)."""
    defined_KR = ~np.isnan(values_KR)
    return ratio(np.where(defined_KR, values_KR, 0.0).sum(axis=0), defined_KR.sum(axis=0), otherwise=np.nan)


def averages(
    correct_KR: FloatArray, predicted_KR: FloatArray, support_KR: FloatArray, *, absent_count: bool
) -> dict[str, FloatArray]:
    """Precision, recall and F1, averaged over K.

    Args:
        correct_KR: How often each class was predicted and true.
        predicted_KR: How often it was predicted.
        support_KR: How often it was true.
        absent_count: Whether a class that is neither predicted nor true counts as 0 in the macro average. scikit-learn
            counts it among labels of which an example may have several, and leaves it out among classes.

    Returns:
        By `precision_macro`, `recall_micro`, `f1_weighted` and so on. Shape: (R,) each.
    """
    by_class = {
        "precision": ratio(correct_KR, predicted_KR),
        "recall": ratio(correct_KR, support_KR),
        "f1": ratio(2 * correct_KR, predicted_KR + support_KR),
    }
    correct_R, predicted_R, support_R = (each.sum(axis=0) for each in (correct_KR, predicted_KR, support_KR))
    found = {
        "precision_micro": ratio(correct_R, predicted_R),
        "recall_micro": ratio(correct_R, support_R),
        "f1_micro": ratio(2 * correct_R, predicted_R + support_R),
    }
    counted_KR = np.ones(support_KR.shape) if absent_count else (predicted_KR + support_KR > 0).astype(np.float64)
    for name, values_KR in by_class.items():
        found[f"{name}_macro"] = ratio((values_KR * counted_KR).sum(axis=0), counted_KR.sum(axis=0))
        found[f"{name}_weighted"] = ratio((values_KR * support_KR).sum(axis=0), support_R)
    return found


def class_table(
    names: tuple[str, ...],
    counts: tuple[IntArray, IntArray, IntArray],
    further: dict[str, list[Cell]] | None = None,
    heading: str = "class",
) -> Table:
    """A row a class, with null for what is undefined: the precision of what was never predicted, for one.

    Args:
        names: Of the classes.
        counts: Correct, predicted, support. Shape: (K,) each.
        further: More columns.
        heading: Of the names.
    """
    correct_K, predicted_K, support_K = counts
    columns: dict[str, list[Cell]] = {
        "support": support_K.tolist(),
        "predicted": predicted_K.tolist(),
        "precision": defined(ratio(correct_K, predicted_K, otherwise=np.nan)),
        "recall": defined(ratio(correct_K, support_K, otherwise=np.nan)),
        "f1": defined(ratio(2 * correct_K, predicted_K + support_K, otherwise=np.nan)),
    }
    for name, values in (further or {}).items():
        columns[name] = values
    return Table(columns=(heading, *columns), rows=tuple(zip(names, *columns.values(), strict=True)))


def averages_table(counts: tuple[IntArray, IntArray, IntArray], *, absent_count: bool) -> Table:
    """All nine averages; arguments as of `averages`, for one draw."""
    correct_K1, predicted_K1, support_K1 = (each_K[:, None].astype(np.float64) for each_K in counts)
    found = averages(correct_K1, predicted_K1, support_K1, absent_count=absent_count)
    rows = tuple(
        (kind, *(float(found[f"{name}_{kind}"][0]) for name in ("precision", "recall", "f1")))
        for kind in ("macro", "micro", "weighted")
    )
    return Table(columns=("average", "precision", "recall", "f1"), rows=rows)


def confusion(labels_N: IntArray, predicted_N: IntArray, classes: int) -> IntArray:
    """How often each class, by row, was taken for each, by column. Shape: (K, K)."""
    return np.bincount(labels_N * classes + predicted_N, minlength=classes**2).reshape(classes, classes)


def confusion_table(labels_N: IntArray, predicted_N: IntArray, names: tuple[str, ...]) -> dict[str, Table]:
    """The matrix as the table `confusion`, where it is small enough to be read; that of 100,000 classes takes 80 GB."""
    if len(names) > _DRAWN_CONFUSION:
        return {}
    matrix_KK = confusion(labels_N, predicted_N, len(names))
    rows = tuple((name, *row) for name, row in zip(names, matrix_KK.tolist(), strict=True))
    return {"confusion": Table(columns=("label", *names), rows=rows)}


def defined(values: FloatArray) -> list[Cell]:
    """Numbers, null for NaN."""
    return [figure(value) for value in values]


def figure(value: np.float64 | FloatArray) -> float | None:
    """One number, null for NaN."""
    return None if np.isnan(value) else float(value)
