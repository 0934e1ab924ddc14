"""Rules that the sections of a run's configuration share."""

from __future__ import annotations

STRICT = {"strict": True, "extra": "forbid", "use_attribute_docstrings": True}


def require_at_least_one(name: str, value: int) -> None:
    """Refuse a count that is not one.

    Raises:
        ValueError: It is below 1.
    """
    if value < 1:
        raise ValueError(f"{name} is {value}, and must be at least 1.")
