"""Settings of the whole test suite."""

from __future__ import annotations

from hypothesis import settings

# The machine is shared, so wall-clock deadlines say nothing; the examples are the same on every machine.
settings.register_profile("longhaul", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("longhaul")
