"""Checkpoints of before queries, keys and values became one parameter, loaded by every ZeRO stage on gloo ranks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from engine_matrix import MATRIX, MODEL, SEED, Case, build, train_steps
from gloo import run_ranks
from load_matrix import MUON, with_optimizer
from older_checkpoints import separate, write

from cluster.checkpoint import CheckpointReader, find_checkpoint
from cluster.engines.initial_state import InitialState
from cluster.topology import Topology
from llm.accounting import count_parameters
from llm.config import OptimizerConfig

ROWS = {"qkv_proj": (16, 8, 8), "gate_up_proj": (49, 49)}
RUN = {"config": {"model": json.loads(json.dumps(asdict(MODEL)))}}
STEP = 2
CASES = [case for case in MATRIX if str(case) in ("zero0-fp32", "zero1-fp32", "zero2-bf16", "zero3-fp32", "zero3-bf16")]
OPTIMIZERS = {"adamw": CASES[0].optimizer, "muon": MUON}


def save_both(optimizer: OptimizerConfig, directory: Path) -> None:
    """One state under the names of now and under the older ones, the latter in an odd number of files."""
    engine = build(Case(precision="fp32", optimizer=optimizer), Topology())
    engine.load(InitialState(MODEL, SEED))
    train_steps(engine, Topology(), range(1, STEP + 1))
    states = engine.snapshot()
    write(directory / "newer", STEP, states, RUN)
    write(directory / "older", STEP, separate(states, ROWS), RUN, ranks=3)


def load_both(topology: Topology, cases: list[Case], directory: Path) -> dict[str, tuple[bool, int]]:
    """By case, whether this rank holds the same after loading either, and how many elements of parameters."""
    found = {}
    for case in cases:
        engine = build(case, topology)
        snapshots = []
        for name in ("newer", "older"):
            info = find_checkpoint(directory / name)
            assert info.manifest is not None
            engine.load(InitialState(MODEL, SEED))  # so that nothing stays of what was loaded before
            engine.load(CheckpointReader(info.directory, info.manifest))
            snapshots.append(engine.snapshot())
        equal = all(
            one.fragment == other.fragment
            and one.scalars == other.scalars
            and one.tensors.keys() == other.tensors.keys()
            and all(torch.equal(tensor, other.tensors[state]) for state, tensor in one.tensors.items())
            for one, other in zip(*snapshots, strict=True)
        )
        found[str(case)] = equal, sum(held.fragment.length for held in snapshots[1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_holds_bit_equal_state_when_the_checkpoint_has_the_older_names(
    world_size: int, name: str, tmp_path: Path
) -> None:
    save_both(OPTIMIZERS[name], tmp_path)
    cases = [with_optimizer(case, OPTIMIZERS[name]) for case in CASES]
    ranks = run_ranks(load_both, world_size, cases, tmp_path)
    for case in map(str, cases):
        held = [rank[case] for rank in ranks]
        assert [equal for equal, _ in held] == [True] * world_size, case
        assert sum(elements for _, elements in held) == count_parameters(MODEL).total, case
