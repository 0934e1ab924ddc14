"""Rules that the sections of the configuration share. Imports no torch."""

from __future__ import annotations

STRICT = {"strict": True, "extra": "forbid", "use_attribute_docstrings": True}


def require_positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0.

    Raises:
        ValueError: It is not.
    """
    if not value > 0:
        raise ValueError(f"{name} is {value}, and must be above 0.")
