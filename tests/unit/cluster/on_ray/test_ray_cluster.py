"""What a private Ray cluster inherits."""

from __future__ import annotations

import pytest

from cluster.on_ray.ray_cluster import PACKAGES


@pytest.mark.parametrize("package", ["cluster", "data_pipeline", "launcher", "llm"])
def test_workers_of_a_private_cluster_find_the_packages(package: str) -> None:
    assert (PACKAGES / package / "__init__.py").exists()
