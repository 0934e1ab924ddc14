"""Figures as people read them: rounded, and always with their unit."""

from __future__ import annotations

import math
from datetime import UTC, datetime

MISSING = "n/a"
ByteUnit = tuple[int, str]
_SI = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def significant(value: float | None, digits: int = 4) -> str:
    """A plain number to so many significant digits; `n/a` for what is absent or not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e15:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def short_count(value: float | None) -> str:
    """A count with k, M, B (10^9) or T (10^12): 3276800 is `3.28 M`."""
    if value is None or not math.isfinite(value):
        return MISSING
    for size, suffix in _SI:
        if abs(value) >= size:
            return f"{significant(value / size, 3)} {suffix}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else significant(value, 3)


def byte_size(value: float | None, unit: ByteUnit | None = None) -> str:
    """Bytes in a binary unit, the one that fits where none is asked for."""
    if value is None or not math.isfinite(value):
        return MISSING
    size, name = byte_unit(value) if unit is None else unit
    return f"{value:,.0f} B" if size == 1 else f"{significant(value / size, 3)} {name}"


def byte_unit(largest: float) -> ByteUnit:
    """The binary unit, as its size in bytes and its name, in which the largest of some figures reads well."""
    return next(((size, name) for size, name in _BINARY if abs(largest) >= size), (1, "B"))


def percentage(fraction: float | None) -> str:
    """A fraction as per cent."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    return f"{significant(100 * fraction, 3)} %"


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units: `2 d 4 h`, `3 h 5 min`, `4 min 12 s`, `8.31 s`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{significant(seconds, 3)} s"
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(place for place, (_, size) in enumerate(units) if whole >= size)
    (large, large_size), (small, small_size) = units[first], units[first + 1]
    rest = whole % large_size // small_size
    return f"{whole // large_size} {large}" + (f" {rest} {small}" if rest else "")


def moment(unix_seconds: float | None) -> str:
    """A point in time, in UTC to the second."""
    if unix_seconds is None or not math.isfinite(unix_seconds):
        return MISSING
    try:
        return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return MISSING


def plural(count: int, noun: str) -> str:
    """`1 attempt`, `2 attempts`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
