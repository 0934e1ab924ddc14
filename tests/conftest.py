"""Settings of the whole test suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from s3 import S3Server

# The machine is shared, so wall-clock deadlines say nothing; the examples are the same on every machine.
settings.register_profile("longhaul", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("longhaul")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the scenarios in tests/chaos."""
    group = parser.getgroup("chaos", "seeded fault scenarios (-m chaos)")
    group.addoption("--chaos-rounds", type=int, default=40, metavar="N", help="number of scenarios")
    group.addoption("--chaos-seed", type=int, default=2024, metavar="S", help="which scenarios")
    group.addoption("--chaos-only", metavar="ID", help="play only this one: its number or its name")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server; it begins with the first test that needs it, since that takes seconds."""
    from s3 import serve_s3

    with serve_s3() as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """URI of an empty bucket."""
    return s3_server.new_bucket()
