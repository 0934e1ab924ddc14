"""Attempts without Ray: run in this process, or in one that dies at a named moment, and what they recorded."""

from __future__ import annotations

import os
import pkgutil
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import numpy as np
from tiny import SilentLink, begin, no_tracking

from cluster.attempt import EngineRequest, Surroundings, run_attempt
from cluster.config import RunConfig
from cluster.engines.builders import torch_engine
from cluster.engines.protocol import Engine
from cluster.record.logs import deterministic_fields, read_lines
from cluster.run_directory import PUBLISHED_STEP, RunDirectory
from cluster.storage.operations import storage_path
from cluster.topology import Topology

KILLED = 9


def die(*_: Any, **__: Any) -> None:
    """End the process as SIGKILL does: no handler, no `finally`, no thread is waited for."""
    os._exit(KILLED)


def attempt_alone(
    config: RunConfig,
    *,
    link: SilentLink | None = None,
    observe: Callable[[Any], None] = lambda batch: None,
    build_engine: Callable[[EngineRequest], Engine] = torch_engine,
) -> SilentLink:
    """One attempt with plain torch in this process."""
    link = link or SilentLink()
    begin(config)
    surroundings = Surroundings(
        build_engine=build_engine, zero_stage=None, link=link, tracking=no_tracking(), observe=observe
    )
    run_attempt(config, Topology(), surroundings)
    return link


def kill_attempt(config: RunConfig, at: int | str, *, published: int | None = None, **given: Any) -> None:
    """One attempt in a process that dies before it computes step `at`, or where it would call the function `at`.

    `given` goes to `attempt_alone`, whose `observe` is called first. With `published` it dies as soon as the checkpoint
    of that step is there and noted, and not earlier.
    """

    pid = os.fork()
    if pid == 0:
        _die_in_attempt(config, at, published, given)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == KILLED


def kill_attempt_of_store(config: RunConfig, at: int | str, *, published: int | None = None) -> None:
    """The same for a run in an object store, whose client is of no use after a fork: in a new process."""
    process = get_context("spawn").Process(target=_die_in_attempt, args=(config, at, published, {}))
    process.start()
    process.join(120)
    assert process.exitcode == KILLED


def _die_in_attempt(config: RunConfig, at: int | str, published: int | None, given: dict[str, Any]) -> None:
    given_observe = given.pop("observe", lambda batch: None)
    directory = storage_path(config.storage) / config.name

    def observe(batch: Any) -> None:
        given_observe(batch)
        if batch.step == at:
            while published is not None and RunDirectory(directory).facts().get(PUBLISHED_STEP) != published:
                time.sleep(0.01)
            die()

    try:
        if isinstance(at, str):
            module, _, name = at.rpartition(".")
            setattr(pkgutil.resolve_name(module), name, die)
        attempt_alone(config, observe=observe, **given)
    finally:
        os._exit(1)  # the moment to die at never came


def record_of(config: RunConfig) -> list[dict[str, Any]]:
    directory = storage_path(config.storage) / config.name
    return [
        deterministic_fields(row) for name in ("metrics.jsonl", "samples.jsonl") for row in read_lines(directory / name)
    ]


def losses_of(config: RunConfig) -> np.ndarray:
    return np.array([row["train/loss"] for row in record_of(config) if row["kind"] == "train"])
