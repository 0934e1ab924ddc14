"""A figure by groups."""

from __future__ import annotations

import numpy as np
import pytest

from llm.errors import MetricsError
from llm.metrics import Measured, Outputs, measure
from llm.metrics.intervals import percentile_intervals
from llm.metrics.regression import regression_statistic
from llm.metrics.slices import slices_of


def graded(groups: list[str], errors: list[float], resamples: int = 200) -> Measured:
    labels = np.arange(len(errors), dtype=np.float64)
    return measure(
        "regression",
        Outputs(labels=labels, predictions=labels + np.array(errors)),
        groups={"dialect": groups},
        resamples=resamples,
    )


def test_table_has_each_group_with_its_own_figure_and_interval() -> None:
    random = np.random.default_rng(0)
    errors = random.normal(size=60)
    table = graded(["north"] * 40 + ["south"] * 20, errors.tolist()).tables["slices/dialect"]
    assert table.columns == ("group", "examples", "mse", "low", "high")
    assert [row[:2] for row in table.rows] == [("north", 40), ("south", 20)]
    assert [row[2] for row in table.rows] == pytest.approx([np.mean(errors[:40] ** 2), np.mean(errors[40:] ** 2)])
    statistic = regression_statistic(errors[:40], np.zeros(40))
    assert table.rows[0][3:] == pytest.approx(percentile_intervals(statistic, 40, resamples=200, seed=0)["mse"])


def test_gap_is_between_the_groups_that_differ_most_and_bounded_away_from_zero_when_it_is_real() -> None:
    groups = ["north"] * 30 + ["south"] * 30 + ["west"] * 30
    errors = [0.1, -0.2] * 15 + [1.0, -2.0] * 15 + [0.5, -0.5] * 15
    ((column, highest, lowest, gap, low, high),) = graded(groups, errors).tables["gaps"].rows
    assert (column, highest, lowest) == ("dialect", "south", "north")
    assert gap == pytest.approx(2.5 - 0.025)
    assert 0 < low < gap < high


def test_gap_is_uncertain_when_groups_are_equal_because_each_is_drawn_by_itself() -> None:
    errors = np.random.default_rng(0).integers(1, 5, size=30).tolist()
    ((_, highest, lowest, gap, low, high),) = graded(["north"] * 30 + ["south"] * 30, errors * 2).tables["gaps"].rows
    assert (highest, lowest, gap) == ("south", "north", 0)
    assert low < 0 < high


def test_gap_leaves_out_groups_of_a_handful_of_examples() -> None:
    measured = graded(["north"] * 20 + ["south"] * 20 + ["west"] * 9, [1.0] * 20 + [2.0] * 20 + [9.0] * 9)
    assert measured.tables["gaps"].rows[0][1] == "south"
    assert [row[0] for row in measured.tables["slices/dialect"].rows] == ["north", "south", "west"]


def test_gap_is_absent_when_there_is_one_group() -> None:
    assert "gaps" not in graded(["north"] * 20, [1.0] * 20).tables


def test_slices_have_no_intervals_when_none_are_asked_for() -> None:
    measured = graded(["north"] * 20 + ["south"] * 20, [1.0] * 20 + [2.0] * 20, resamples=0)
    assert measured.tables["slices/dialect"].rows == (("north", 20, 1.0, None, None), ("south", 20, 4.0, None, None))
    assert measured.tables["gaps"].rows == (("dialect", "south", "north", 3.0, None, None),)


def test_slice_is_null_when_the_figure_is_undefined_in_a_group() -> None:
    labels_N = np.array([0.0, 1.0, 2.0, 5.0, 5.0])
    predictions_N = np.array([0.0, 1.5, 2.0, 4.0, 6.0])

    north, south = slices_of(
        ["north"] * 3 + ["south"] * 2,
        lambda rows: regression_statistic(predictions_N[rows], labels_N[rows]),
        "pearson",
        resamples=20,
    )
    assert north.value is not None
    assert (south.value, south.interval) == (None, None)


def test_groups_are_refused_when_they_are_nearly_as_many_as_examples() -> None:
    with pytest.raises(MetricsError) as refusal:
        graded([str(place) for place in range(101)], [1.0] * 101)
    assert str(refusal.value) == (
        "a column of groups has 101 values, '0' among them: a table compares at most 100. "
        "Put the examples into fewer groups."
    )


def test_groups_are_refused_when_examples_lack_one() -> None:
    with pytest.raises(MetricsError) as refusal:
        graded(["north"], [1.0, 2.0])
    assert str(refusal.value) == (
        "measures got the groups 'dialect' and the examples of lengths 1 and 2: they describe the same examples. "
        "Gather both from the same examples, in the same order."
    )
