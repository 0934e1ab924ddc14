"""Settings of the whole test suite."""

from __future__ import annotations

import pytest
from hypothesis import settings

# The machine is shared, so wall-clock deadlines say nothing; the examples are the same on every machine.
settings.register_profile("longhaul", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("longhaul")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the scenarios in tests/chaos."""
    group = parser.getgroup("chaos", "seeded fault scenarios (-m chaos)")
    group.addoption("--chaos-rounds", type=int, default=40, metavar="N", help="number of scenarios")
    group.addoption("--chaos-seed", type=int, default=2024, metavar="S", help="which scenarios")
    group.addoption("--chaos-only", metavar="ID", help="play only this one: its number or its name")
