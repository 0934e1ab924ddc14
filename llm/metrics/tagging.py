"""Measures of one tag for each token: of tokens by scikit-learn's definitions, of entities by seqeval's strict ones.

Intervals draw whole examples (sentences), since the tokens of one are not independent.

Legend: N examples, R draws, K tokens of all examples, V tags, E types of entities.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from llm.errors import MetricsError
from llm.metrics.classification import AVERAGES
from llm.metrics.counted import averages, averages_table, class_table, confusion_table
from llm.metrics.entities import EntityTags, entity_tags
from llm.metrics.inputs import FloatArray, IntArray, class_labels, class_names
from llm.metrics.intervals import Statistic
from llm.metrics.measured import Table
from llm.metrics.measures import Measures, Outputs, point

Tallies = tuple[IntArray, IntArray, IntArray]
"""Correct, predicted, support of each example. Shape: (N, V) or (N, E) each."""


def tagging(outputs: Outputs, names: Sequence[str]) -> Measures:
    """Measures of `predictions` (K,) and `labels` (K,), of which `lengths` (N,) are one example each.

    Raises:
        MetricsError: the arrays do not go together.
    """
    tags = class_names(names, least=2, what="tag")
    predictions = np.asarray(outputs.predictions)
    predicted_K = class_labels(predictions, predictions.size, len(tags), what="predicted tag")
    labels_K = class_labels(outputs.labels, len(predicted_K), len(tags), what="tag")
    lengths_N = _lengths(outputs.lengths, len(labels_K))
    example_K = np.repeat(np.arange(len(lengths_N)), lengths_N)
    tokens = _token_tallies(predicted_K, labels_K, example_K, (len(lengths_N), len(tags)))
    scheme = entity_tags(tags)
    entities = None if scheme is None else _entity_tallies(predicted_K, labels_K, lengths_N, scheme)

    def of_rows(rows: IntArray) -> Statistic:
        chosen = None if entities is None else _rows_of(entities, rows)
        return tagging_statistic(_rows_of(tokens, rows), chosen)

    statistic = tagging_statistic(tokens, entities)
    tables = _tables(tokens, tags, heading="tag", prefix="")
    if entities is not None and scheme is not None:
        tables |= _tables(entities, scheme.types, heading="entity", prefix="entity_")
    tables |= confusion_table(labels_K, predicted_K, tags)
    headline = point(statistic, len(lengths_N))
    return Measures(examples=len(lengths_N), headline=headline, drawn=statistic, of_rows=of_rows, tables=tables)


def tagging_statistic(tokens: Tallies, entities: Tallies | None) -> Statistic:
    """The figures of draws; `entity_precision`, `entity_recall` and `entity_f1` are over entities of all types."""
    of_tokens = tuple(tally_NV.T.astype(np.float64) for tally_NV in tokens)
    of_entities = tuple(tally_NE.T.astype(np.float64) for tally_NE in entities or ())

    def figures(counts_NR: IntArray) -> dict[str, FloatArray]:
        weights_NR = counts_NR.astype(np.float64)
        correct_VR, predicted_VR, support_VR = (tally_VN @ weights_NR for tally_VN in of_tokens)
        averaged = averages(correct_VR, predicted_VR, support_VR, absent_count=False)
        found = {
            "accuracy": correct_VR.sum(axis=0) / support_VR.sum(axis=0),
            **{name: averaged[name] for name in AVERAGES},
        }
        if of_entities:
            by_type = averages(*(tally_EN @ weights_NR for tally_EN in of_entities), absent_count=False)
            found |= {f"entity_{name}": by_type[f"{name}_micro"] for name in ("precision", "recall", "f1")}
            found["entity_f1_macro"] = by_type["f1_macro"]
        return found

    return figures


def _token_tallies(predicted_K: IntArray, labels_K: IntArray, example_K: IntArray, shape: tuple[int, int]) -> Tallies:
    right_K = predicted_K == labels_K
    pairs = ((example_K[right_K], labels_K[right_K]), (example_K, predicted_K), (example_K, labels_K))
    correct, predicted, support = (_tally(rows, columns, shape) for rows, columns in pairs)
    return correct, predicted, support


def _tally(rows: IntArray, columns: IntArray, shape: tuple[int, int]) -> IntArray:
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)


def _entity_tallies(predicted_K: IntArray, labels_K: IntArray, lengths_N: IntArray, scheme: EntityTags) -> Tallies:
    place = {kind: column for column, kind in enumerate(scheme.types)}
    correct, predicted, support = (np.zeros((len(lengths_N), len(place)), dtype=np.int64) for _ in range(3))
    ends = np.append(0, np.cumsum(lengths_N)).tolist()
    for row, (begin, end) in enumerate(pairwise(ends)):
        said = scheme.entities(predicted_K[begin:end].tolist())
        true = scheme.entities(labels_K[begin:end].tolist())
        for tally, entities in ((correct, said & true), (predicted, said), (support, true)):
            for kind, _, _ in entities:
                tally[row, place[kind]] += 1
    return correct, predicted, support


def _rows_of(tallies: Tallies, rows: IntArray) -> Tallies:
    correct, predicted, support = (tally[rows] for tally in tallies)
    return correct, predicted, support


def _tables(tallies: Tallies, names: tuple[str, ...], heading: str, prefix: str) -> dict[str, Table]:
    correct, predicted, support = (tally.sum(axis=0) for tally in tallies)
    counts = (correct, predicted, support)
    return {
        f"{prefix}classes": class_table(names, counts, heading=heading),
        f"{prefix}averages": averages_table(counts, absent_count=False),
    }


def _lengths(lengths: ArrayLike, tokens: int) -> IntArray:
    found = np.asarray(lengths)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
        raise MetricsError(
            f"measures got lengths of dtype {found.dtype} and shape {found.shape}: each example needs the whole number "
            "of its labelled tokens. Pass an integer array with one length for each example."
        )
    if found.min() < 1 or found.sum() != tokens:
        raise MetricsError(
            f"measures got {len(found)} lengths from {found.min()} up with sum {found.sum()}, and {tokens} labelled "
            "tokens: each example has at least 1, and together they have all. "
            "Count the labelled tokens of each example, and leave out examples without any."
        )
    return found.astype(np.int64)
