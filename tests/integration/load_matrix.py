"""Checkpoints of any topology loaded on any other: what is held afterwards, and how the training goes on.

`load_all` runs on every rank, `check_all` once on what the ranks give back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from engine_matrix import (
    LOSS_TOLERANCE,
    MATRIX,
    MODEL,
    OPTIMIZER,
    SAVED_AFTER,
    STEPS,
    Case,
    Curve,
    Precision,
    build,
    train_steps,
)

from cluster.checkpoint import CheckpointReader, find_checkpoint
from cluster.config import ZeroConfig
from cluster.engines.protocol import MASTER, Engine
from cluster.topology import Topology
from llm.accounting import count_parameters
from llm.config import OptimizerConfig

RATE = 1e-2
MUON = OptimizerConfig(name="muon", learning_rate=RATE)
SGD = OptimizerConfig(name="sgd", learning_rate=RATE, momentum=0.9, nesterov=False)
FEW_STEPS = 2
"""Enough to see that more was set than what a snapshot holds, the parameters that are computed with."""


def with_optimizer(case: Case, optimizer: OptimizerConfig) -> Case:
    """The same topology under another update rule."""
    return replace(case, optimizer=optimizer, note=optimizer.name)


def _cell(stage: Literal[0, 1, 2, 3], precision: Precision, optimizer: OptimizerConfig) -> Case:
    return with_optimizer(Case(zero=ZeroConfig(stage=stage), precision=precision), optimizer)


LOADED = [*MATRIX, _cell(0, "fp32", MUON), _cell(2, "bf16", MUON), _cell(3, "fp32", MUON), _cell(1, "fp32", SGD)]
"""Every stage and precision under AdamW, and cells of the other optimizers."""
GROUPS = {
    "adamw": {"decay": (0.1, RATE), "no_decay": (0.0, RATE)},
    "sgd": {"decay": (0.1, RATE), "no_decay": (0.0, RATE)},
    "muon": {"muon": (0.1, RATE), "decay": (0.1, RATE), "no_decay": (0.0, RATE)},
}


@dataclass(frozen=True)
class Loaded:
    """What a rank holds after loading: whether it is bit for bit what was saved, and how many elements it is."""

    equal: bool
    """Masters, moments and step counts, under the same names."""
    elements: int
    losses: list[float]
    """Of the steps after the checkpoint; none where its precision was another."""
    groups: dict[str, tuple[float, float]]
    """Weight decay and rate of each group after these steps."""


def load_all(
    topology: Topology, cases: list[Case], directory: Path, few_steps: int = FEW_STEPS
) -> dict[tuple[str, str], Loaded]:
    """Every case loads every checkpoint of its optimizer, and goes on from those of its precision.

    It goes on for all the steps from the first, and for a few from the others: what follows from equal states is equal,
    wherever they were saved. The first is loaded into a new engine, the others into one that has been trained.
    """
    results: dict[tuple[str, str], Loaded] = {}
    for number, case in enumerate(cases):
        engine = build(case, topology)
        origins = [path for path in sorted(directory.iterdir()) if _optimizer_of(path.name) == case.optimizer.name]
        turned = number % len(origins)  # so that not every case begins with the same one
        steps = STEPS
        for saved in origins[turned:] + origins[:turned]:
            loaded, elements = _load(engine, saved)
            losses = []
            if case.precision in saved.name.split("-"):
                losses = train_steps(engine, topology, range(SAVED_AFTER + 1, SAVED_AFTER + 1 + steps)).losses
                steps = few_steps
            results[saved.name, f"{topology.world_size}-{case}"] = Loaded(loaded, elements, losses, _groups_of(engine))
    return results


def check_all(
    goes_on: dict[str, Curve], cases: list[Case], ranks: list[dict[tuple[str, str], Loaded]]
) -> dict[str, list[float | None]]:
    """Compare what was loaded on `len(ranks)` ranks with the runs that were never interrupted.

    Args:
        goes_on: Curves by the names of their checkpoints.
        cases: The targets.
        ranks: What `load_all` gave on each rank.

    Returns:
        By target, for each checkpoint: the largest relative difference of a loss; None where the precision differs.
    """
    differences: dict[str, list[float | None]] = {}
    assert {target for _, target in ranks[0]} == {f"{len(ranks)}-{case}" for case in cases}
    for case in cases:
        target = f"{len(ranks)}-{case}"
        mine = {origin: loaded for (origin, name), loaded in ranks[0].items() if name == target}
        assert mine.keys() == {name for name in goes_on if _optimizer_of(name) == case.optimizer.name}
        assert max(len(loaded.losses) for loaded in mine.values()) == STEPS
        for origin, loaded in mine.items():
            held = [rank[origin, target] for rank in ranks]
            assert all(part.equal for part in held), f"{origin} -> {target}: state is not bit-equal"
            assert sum(part.elements for part in held) == count_parameters(MODEL).total, f"{origin} -> {target}"
            difference = None
            if case.precision in origin.split("-"):
                assert len(loaded.losses) >= FEW_STEPS
                assert all(part.groups == GROUPS[case.optimizer.name] for part in held), f"{origin} -> {target}"
                undisturbed = Curve(goes_on[origin].losses[SAVED_AFTER:], {})
                difference = Curve(loaded.losses, {}).loss_difference(undisturbed)
                assert difference <= LOSS_TOLERANCE[case.precision], f"{origin} -> {target}: {difference:.1e} apart"
            differences.setdefault(target, []).append(difference)
    return differences


def _load(engine: Engine, saved: Path) -> tuple[bool, int]:
    """Whether a rank holds what was saved, and how many elements of parameters."""
    info = find_checkpoint(saved)
    assert info.manifest is not None
    reader = CheckpointReader(info.directory, info.manifest)
    engine.load(reader)
    held = engine.snapshot()
    equal = all(
        part.tensors.keys() == {MASTER, *reader.tensor_names(part.fragment.name)}
        and part.scalars == reader.scalars(part.fragment.name)
        and all(torch.equal(tensor, reader.read(part.fragment, state)) for state, tensor in part.tensors.items())
        for part in held
    )
    return equal, sum(part.fragment.length for part in held)


def _groups_of(engine: Engine) -> dict[str, tuple[float, float]]:
    groups = engine._inner.param_groups  # type: ignore[attr-defined]
    return {group["name"]: (group["weight_decay"], group["lr"]) for group in groups}


def _optimizer_of(name: str) -> str:
    return next((optimizer for optimizer in ("muon", "sgd") if optimizer in name.split("-")), OPTIMIZER.name)
