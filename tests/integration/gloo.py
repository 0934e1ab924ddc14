"""Real gloo processes: run a function on N ranks and get every rank's result back."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.topology import Topology

_PRELOADED = ["numpy", "torch", "torch._dynamo", "deepspeed"]
"""Imported once by the process that the ranks are forked from: they take each rank seconds otherwise."""


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, join: bool = True) -> list[Any]:
    """Call `function(topology, *arguments)` on every rank of a gloo group; results by rank."""
    _start_server()
    with tempfile.TemporaryDirectory() as directory:
        mp.start_processes(
            _rank,
            (dict(os.environ), function, world_size, directory, arguments),
            nprocs=world_size,
            join=True,
            start_method="forkserver",
        )
        return [pickle.loads((Path(directory) / f"result-{rank}").read_bytes()) for rank in range(world_size)]


def _rank(
    rank: int,
    environment: dict[str, str],
    function: Callable[..., Any],
    world_size: int,
    directory: str,
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()  # it is that of the server's start
    os.environ.update(environment)
    os.environ.update(
        DS_ACCELERATOR="cpu", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), OMP_NUM_THREADS="1"
    )
    torch.set_num_threads(1)
    store = dist.FileStore(f"{directory}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=120))
    try:
        result = function(Topology(rank=rank, local_rank=rank, world_size=world_size), *arguments)
        (Path(directory) / f"result-{rank}").write_bytes(pickle.dumps(result))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


def _start_server() -> None:
    """Start the process that ranks are forked from, if it does not run; DeepSpeed picks its device on import."""
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        multiprocessing.set_forkserver_preload(_PRELOADED)
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["DS_ACCELERATOR"]
        else:
            os.environ["DS_ACCELERATOR"] = before
