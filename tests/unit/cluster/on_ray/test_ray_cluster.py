"""What a private Ray cluster inherits."""

from __future__ import annotations

import os

import pytest
import ray

from cluster.errors import ResourcesError
from cluster.on_ray.ray_cluster import PACKAGES, connect


@pytest.mark.parametrize("package", ["cluster", "data_pipeline", "launcher", "llm"])
def test_workers_of_a_private_cluster_find_the_packages(package: str) -> None:
    assert (PACKAGES / package / "__init__.py").exists()


def test_connect_says_what_to_do_when_ray_does_not_start_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", time_out)
    monkeypatch.setattr("cluster.on_ray.ray_cluster._import_what_comes_next", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(ResourcesError) as raised, connect(None):
        pass
    assert str(raised.value) == (
        "Ray could not be started on this machine: The current node timed out during startup. Where other programs "
        "take all of its cores or memory, give the same command again once they do not; otherwise Ray's logs in "
        "/tmp/ray/session_latest/logs say more."
    )
