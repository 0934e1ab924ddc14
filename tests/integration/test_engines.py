"""DeepSpeed at every stage against plain torch, on real gloo ranks: losses, gradients, and state moved between them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo import run_ranks

from cluster.batches import micro_batch_count, rows_of_rank
from cluster.checkpoint import CheckpointReader, CheckpointWriter, find_checkpoint
from cluster.collectives import Collectives
from cluster.engine import Engine, MicroBatch
from cluster.initial_state import InitialState
from cluster.topology import Topology
from llm.config import ModelConfig, OptimizerConfig

FP32_LOSS_TOLERANCE = 1e-5  # Resume law
BF16_LOSS_TOLERANCE = 5e-3  # Resume law
FP32_GRADIENT_TOLERANCE = 1e-5  # relative to the largest gradient: sums of some 80 terms in another order
BF16_GRADIENT_TOLERANCE = 3e-2  # bf16 keeps 8 bits: 2^-8 per rounding, over rows that are grouped otherwise
TOLERANCE = {"fp32": FP32_LOSS_TOLERANCE, "bf16": BF16_LOSS_TOLERANCE}
GRADIENT_TOLERANCE = {"fp32": FP32_GRADIENT_TOLERANCE, "bf16": BF16_GRADIENT_TOLERANCE}

# 33 * 67 and 7 * 33 divide by neither 2 nor 3
MODEL = ModelConfig(
    vocab_size=67,
    hidden_size=33,
    head_dim=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=49,
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
ROWS, LENGTH = 5, 16
STEPS = 20

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Case:
    """One engine and how its rows fall."""

    stage: int | None
    precision: Precision
    micro_batch_size: int = 2

    def __str__(self) -> str:
        return f"{'torch' if self.stage is None else f'zero{self.stage}'}-{self.precision}"


def build(case: Case, topology: Topology) -> Engine:
    if case.stage is None:
        from cluster.torch_engine import TorchEngine
        from llm.transformer import Transformer

        return TorchEngine(Transformer(MODEL, "sdpa"), optimizer=OPTIMIZER, precision=case.precision)
    from cluster.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        MODEL,
        "sdpa",
        optimizer=OPTIMIZER,
        stage=case.stage,
        precision=case.precision,
        micro_batch_size=case.micro_batch_size,
        micro_batches=micro_batch_count(ROWS, topology.world_size, case.micro_batch_size),
        topology=topology,
    )


def train_steps(engine: Engine, case: Case, topology: Topology, steps: range) -> tuple[list[float], dict[str, Any]]:
    """Losses of some steps, and the gradients of the first of them."""
    losses, gradients = [], {}
    for step in steps:
        draw = np.random.default_rng(step)
        tokens = draw.integers(0, 67, (ROWS, LENGTH + 1))
        weights = (draw.random((ROWS, LENGTH)) > 0.2).astype(np.float32)
        scale = torch.tensor(1.0 / weights.sum(), dtype=torch.float32)
        loss_sum = torch.zeros((), dtype=torch.float64)
        for rows in rows_of_rank(np.arange(ROWS), topology.rank, topology.world_size, case.micro_batch_size):
            real = rows[:, None] >= 0
            held = torch.from_numpy(np.where(real, tokens[rows], 0))
            batch = MicroBatch(
                held[:, :-1].contiguous(),
                held[:, 1:].contiguous(),
                torch.from_numpy(np.where(real, weights[rows], 0).astype(np.float32)),
                None,
            )
            loss_sum += engine.accumulate(batch, scale).loss_sum
        if topology.world_size > 1:
            dist.all_reduce(loss_sum)
        if step == steps[0]:
            gradients = engine.gradients()  # type: ignore[attr-defined]
        engine.update(1e-2)
        losses.append(loss_sum.item() / float(weights.sum()))
    return losses, gradients


def fresh_curves(topology: Topology, cases: list[Case]) -> dict[str, Any]:
    """From initial values: losses and first gradients of each case."""
    curves = {}
    for case in cases:
        engine = build(case, topology)
        engine.load(InitialState(MODEL, 7))
        curves[str(case)] = train_steps(engine, case, topology, range(1, 7))
    return curves


def save_all(topology: Topology, cases: list[Case], directory: Path) -> dict[str, Any]:
    """Six steps, a checkpoint, and the losses of the 20 steps after it."""
    curves = {}
    for case in cases:
        engine = build(case, topology)
        engine.load(InitialState(MODEL, 7))
        train_steps(engine, case, topology, range(1, 7))
        writer = CheckpointWriter(
            directory / f"{topology.world_size}-{case}",
            attempt=1,
            rank=topology.rank,
            world_size=topology.world_size,
            keep_last=1,
            agree=Collectives().first_error,
        )
        writer.save(6, engine.snapshot(), {})
        writer.finish()
        curves[f"{topology.world_size}-{case}"] = train_steps(engine, case, topology, range(7, 7 + STEPS))[0]
    return curves


def load_all(topology: Topology, cases: list[Case], directory: Path) -> dict[tuple[str, str], Any]:
    """Every case loads every checkpoint: whether what it then holds is bit-equal, and the losses that follow."""
    results = {}
    for case in cases:
        for saved in sorted(directory.iterdir()):
            if not saved.name.endswith(case.precision):
                continue
            info = find_checkpoint(saved)
            assert info.manifest is not None
            reader = CheckpointReader(info.directory, info.manifest)
            engine = build(case, topology)
            engine.load(reader)
            equal = all(
                torch.equal(tensor, reader.read(held.fragment, state)) and held.scalars == reader.scalars(name)
                for held in engine.snapshot()
                for name in [held.fragment.name]
                for state, tensor in held.tensors.items()
            )
            covered = sum(held.fragment.length for held in engine.snapshot())
            losses = train_steps(engine, case, topology, range(7, 7 + STEPS))[0]
            results[saved.name, f"{topology.world_size}-{case}"] = (equal, covered, losses)
    return results


@functools.cache
def reference(precision: Precision) -> tuple[list[float], dict[str, Any]]:
    case = Case(None, precision, micro_batch_size=ROWS)
    return fresh_curves(Topology(), [case])[str(case)]


ALL_STAGES = [Case(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]


@functools.cache
def curves_on(world_size: int) -> list[dict[str, Any]]:
    return run_ranks(fresh_curves, world_size, ALL_STAGES)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", ALL_STAGES, ids=str)
def test_losses_and_gradients_equal_plain_torch(world_size: int, case: Case) -> None:
    losses, gradients = curves_on(world_size)[0][str(case)]
    expected_losses, expected_gradients = reference(case.precision)
    assert np.allclose(losses, expected_losses, rtol=TOLERANCE[case.precision], atol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, expected in expected_gradients.items():
        difference = (gradients[name] - expected).abs().max() / expected.abs().max()
        assert difference <= GRADIENT_TOLERANCE[case.precision], name


def _numel() -> int:
    from llm.accounting import count_parameters

    return count_parameters(MODEL).total


def _load_matrix(directory: Path, savers: dict[int, list[Case]], loaders: dict[int, list[Case]]) -> None:
    saved: dict[str, list[float]] = {}
    for world_size, cases in savers.items():
        saved |= run_ranks(save_all, world_size, cases, directory)[0]
    for world_size, cases in loaders.items():
        ranks = run_ranks(load_all, world_size, cases, directory)
        for pair in ranks[0]:
            origin, target = pair
            assert all(rank[pair][0] for rank in ranks), f"{origin} -> {target}: state is not bit-equal"
            assert sum(rank[pair][1] for rank in ranks) == _numel(), f"{origin} -> {target}: parameters not covered"
            precision = origin.rsplit("-", 1)[1]
            rtol = TOLERANCE[precision]
            assert np.allclose(ranks[0][pair][2], saved[origin], rtol=rtol, atol=0), f"{origin} -> {target}"


def test_state_is_bit_equal_and_curve_goes_on_when_moved_between_topologies(tmp_path: Path) -> None:
    fp32 = [Case(stage, "fp32") for stage in (1, 2, 3)]
    _load_matrix(tmp_path, {2: [*fp32, Case(1, "bf16"), Case(3, "bf16")]}, {3: [*fp32, Case(2, "bf16")]})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_is_bit_equal_when_moved_between_all_topologies(precision: Precision, tmp_path: Path) -> None:
    cases = [Case(stage, precision) for stage in (0, 1, 2, 3)]
    everywhere = dict.fromkeys((1, 2, 3), cases)
    _load_matrix(tmp_path, everywhere, everywhere)
