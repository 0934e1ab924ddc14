"""Figures as people read them."""

from __future__ import annotations

import pytest

from launcher.report.units import byte_size, duration, moment, percentage, plural, short_count, significant


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "n/a"),
        (float("inf"), "n/a"),
        (0, "0"),
        (3.91234, "3.912"),
        (68.3, "68.30"),
        (12345.6, "12,346"),
    ],
)
def test_significant_rounds_to_four_digits(value: float | None, expected: str) -> None:
    assert significant(value) == expected


def test_significant_uses_powers_of_ten_when_small() -> None:
    assert significant(0.0001) == "1.000e-04"


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "n/a"), (0, "0"), (999, "999"), (3_276_800, "3.28 M"), (1.2e9, "1.20 B")]
)
def test_short_count_names_its_power(value: float | None, expected: str) -> None:
    assert short_count(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "n/a"),
        (8.312, "8.31 s"),
        (60, "1 min"),
        (252, "4 min 12 s"),
        (3599.7, "1 h"),
        (11_100, "3 h 5 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_duration_uses_two_units(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


def test_byte_size_is_binary() -> None:
    assert [byte_size(size) for size in (None, 512, 2**30 * 1.5)] == ["n/a", "512 B", "1.50 GiB"]


def test_percentage_takes_a_fraction() -> None:
    assert [percentage(part) for part in (None, 0.4137)] == ["n/a", "41.4 %"]


def test_moment_is_utc_and_survives_nonsense() -> None:
    assert [moment(when) for when in (0, None, 1e30)] == ["1970-01-01 00:00:00 UTC", "n/a", "n/a"]


def test_plural_counts() -> None:
    assert [plural(count, "step") for count in (1, 2000)] == ["1 step", "2,000 steps"]
