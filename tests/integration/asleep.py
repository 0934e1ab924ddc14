"""The command, with one rank whose training thread falls asleep once: `python asleep.py MARKER RANK STEP ARGUMENTS`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

MARKER, RANK, STEP = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


def main() -> None:
    """Run the command with `train_worker` in the place of Ray's."""
    import cluster.driver
    from launcher.__main__ import main as command

    begin = cluster.driver.train_on_ray

    def train_on_ray(*arguments: Any, **options: Any) -> dict[str, Any]:
        import cluster.on_ray.worker  # not earlier: the command sets Ray's environment before it is imported

        cluster.on_ray.worker.train_worker = worker_that_sleeps(MARKER, RANK, STEP)
        return begin(*arguments, **options)

    cluster.driver.train_on_ray = train_on_ray
    sys.argv = ["launcher", *sys.argv[4:]]
    command()


def worker_that_sleeps(marker: Path, sleeper: int, when: int) -> Any:
    """What Ray runs in each worker; it is sent there as it stands."""

    def nap(rank: int, step: int) -> None:
        if (rank, step) == (sleeper, when) and not marker.exists():
            marker.touch()
            time.sleep(3600)

    def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
        import cluster.on_ray.worker

        run_attempt = cluster.on_ray.worker.run_attempt

        def attempt(config: Any, topology: Any, surroundings: Any) -> Any:
            def observe(batch: Any) -> None:
                surroundings.observe(batch)
                nap(topology.rank, batch.step)

            return run_attempt(config, topology, replace(surroundings, observe=observe))

        cluster.on_ray.worker.run_attempt = attempt
        return cluster.on_ray.worker.train_worker(settings)

    return train_worker


if __name__ == "__main__":
    main()
