"""Engines that must agree: every ZeRO stage, precision and number of ranks against plain torch, over the same batches.

Used by the tests and by `python -m tests.bench.engine_matrix`; the functions that take a topology run on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from cluster.batches import micro_batch_count, rows_of_rank
from cluster.checkpoint import CheckpointWriter, WriterHooks
from cluster.collectives import Collectives
from cluster.config import CheckpointConfig, ZeroConfig
from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import Engine, MicroBatch
from cluster.engines.torch_engine import TorchEngine
from cluster.topology import Topology
from llm.activation_checkpointing import ActivationCheckpointing
from llm.compilation import compile_blocks
from llm.config import ModelConfig, OptimizerConfig, RopeScaling
from llm.dropout import row_keys
from llm.transformer import Transformer

Precision = Literal["fp32", "bf16"]

LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}  # Resume law, relative
GRADIENT_TOLERANCE = {
    "fp32": 1e-5,  # relative to the largest gradient: sums of some 80 terms in another order
    "bf16": 3e-2,  # bf16 keeps 8 bits: 2^-8 per rounding, over rows that are grouped otherwise
}
# 33 * 67 and 7 * 33 divide by neither 2 nor 3 nor 4; vectors are not decayed, so there are two parameter groups
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
ROWS, LENGTH = (5,), 16
"""Sequences of the steps, in turn."""
CHANGING_ROWS = (2, 5, 9)
"""Steps of other numbers of micro-batches: 1, 3 and 5 on one rank, 1, 2 and 3 on two."""
STEPS = 20
SAVED_AFTER = 6
SEED = 7


@dataclass(frozen=True, kw_only=True)
class Case:
    """One engine; plain torch where there is no ZeRO."""

    zero: ZeroConfig | None = None
    precision: Precision
    optimizer: OptimizerConfig = OPTIMIZER
    model: ModelConfig = MODEL
    z_loss: float = 0.0
    activation_checkpointing: ActivationCheckpointing = "off"
    compiled: bool = False
    note: str = ""

    def __str__(self) -> str:
        return "-".join(
            filter(None, ["torch" if self.zero is None else f"zero{self.zero.stage}", self.precision, self.note])
        )


@dataclass(frozen=True)
class Curve:
    """Losses of consecutive steps, and the whole gradients of the first of them."""

    losses: list[float]
    gradients: dict[str, torch.Tensor]

    def loss_difference(self, reference: Curve) -> float:
        """Largest relative difference of the losses that both have."""
        pairs = zip(self.losses, reference.losses, strict=False)
        return max(abs(mine - other) / abs(other) for mine, other in pairs)

    def gradient_difference(self, reference: Curve) -> float:
        """Largest difference of a gradient, relative to the largest gradient of its parameter."""
        assert self.gradients.keys() == reference.gradients.keys()
        return max(
            ((self.gradients[name] - other).abs().max() / other.abs().max()).item()
            for name, other in reference.gradients.items()
        )


def _cell(stage: Literal[0, 1, 2, 3], precision: Precision) -> Case:
    """A cell of the matrix. Half of them recompute activations; at stage 3 nothing stays whole between its uses."""
    zero = ZeroConfig(stage=stage, parameter_persistence_threshold_elements=0 if stage == 3 else None)
    recomputes = (stage + (precision == "bf16")) % 2 == 1
    return Case(zero=zero, precision=precision, activation_checkpointing="full" if recomputes else "off")


MATRIX = [_cell(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]

_SMALL_BUCKETS = ZeroConfig(
    stage=2, reduce_bucket_elements=500, allgather_bucket_elements=300, overlap_communication=True
)
_SMALL_BUCKETS_3 = ZeroConfig(
    stage=3, reduce_bucket_elements=500, prefetch_bucket_elements=0, parameter_persistence_threshold_elements=40
)
OPTIONS = [
    Case(zero=_SMALL_BUCKETS, precision="fp32", note="small-buckets"),
    Case(zero=_SMALL_BUCKETS_3, precision="fp32", note="small-buckets"),
    Case(zero=ZeroConfig(stage=3), precision="bf16", activation_checkpointing="full", note="recomputed"),
    Case(zero=ZeroConfig(stage=1, offload_optimizer="cpu"), precision="fp32", note="offload"),
    Case(zero=ZeroConfig(stage=2, offload_optimizer="cpu"), precision="bf16", note="offload"),
    Case(zero=ZeroConfig(stage=3, offload_optimizer="cpu", offload_parameters="cpu"), precision="bf16", note="offload"),
    # the last: DeepSpeed keeps its groups of ranks for the life of the process
    Case(zero=ZeroConfig(stage=3, hpz_partition_size=2), precision="fp32", note="hpz"),
]
"""Options of ZeRO that must not change the curve. Those that a run on CPUs is refused work here as they do on GPUs:
what they leave out on CPUs is page-locked memory and streams."""


_RICH = replace(
    MODEL,
    normalization="layer_norm",
    sandwich_norm=True,
    attention_bias=True,
    mlp_bias=True,
    qk_norm=True,
    tie_word_embeddings=False,
    sliding_window=6,
    layer_types=("sliding_attention", "full_attention"),
    rope_scaling=RopeScaling(rope_type="llama3", factor=4.0, original_max_position_embeddings=8),
    attn_logit_softcapping=20.0,
    final_logit_softcapping=10.0,
    residual_multiplier=0.5,
    embedding_dropout=0.1,
    attention_dropout=0.1,
    residual_dropout=0.1,
)
_GPT_2 = replace(
    MODEL, position_embedding="learned", max_position_embeddings=LENGTH, gated_mlp=False, hidden_act="gelu"
)
_EXPERTS = replace(MODEL, hidden_size=32, num_experts=4, moe_intermediate_size=24, router_aux_loss_coef=0.05)
MODELS = [
    Case(zero=ZeroConfig(stage=2), precision="fp32", model=_RICH, z_loss=1e-2, note="rich"),
    Case(
        zero=ZeroConfig(stage=3, parameter_persistence_threshold_elements=0),
        precision="fp32",
        model=_RICH,
        z_loss=1e-2,
        activation_checkpointing="selective",
        note="rich",
    ),
    Case(zero=ZeroConfig(stage=3), precision="bf16", model=_GPT_2, activation_checkpointing="full", note="gpt2"),
    Case(zero=ZeroConfig(stage=2), precision="fp32", model=_EXPERTS, activation_checkpointing="full", note="experts"),
    Case(
        zero=ZeroConfig(stage=3, parameter_persistence_threshold_elements=0),
        precision="fp32",
        model=_EXPERTS,
        optimizer=OptimizerConfig(name="muon", learning_rate=1e-2),
        note="experts",
    ),
]
"""Models with what the matrix's has not: norms, biases, windows, caps, multipliers, dropout, z-loss,
learned positions, experts."""
COMPILED = [
    Case(zero=ZeroConfig(stage=0), precision="fp32", compiled=True, note="compiled"),
    Case(zero=ZeroConfig(stage=2), precision="bf16", compiled=True, note="compiled"),
    Case(
        zero=ZeroConfig(stage=3, parameter_persistence_threshold_elements=0),
        precision="fp32",
        compiled=True,
        activation_checkpointing="full",
        note="compiled",
    ),
    Case(zero=ZeroConfig(stage=3), precision="bf16", compiled=True, note="compiled"),
]


def build(case: Case, topology: Topology) -> Engine:
    """The engine of a case, without state."""
    build_model = partial(_build_model, case)
    if case.zero is None:
        return TorchEngine(build_model(), optimizer=case.optimizer, precision=case.precision)
    from cluster.engines.deepspeed_engine import DeepSpeedEngine

    size = micro_batch_size(topology.world_size)
    return DeepSpeedEngine(
        build_model,
        optimizer=case.optimizer,
        zero=case.zero,
        precision=case.precision,
        micro_batch_size=size,
        micro_batches=micro_batch_count(max(ROWS), topology.world_size, size),
        topology=topology,
        compiled=case.compiled,
    )


def _build_model(case: Case) -> Transformer:
    attention = "eager" if case.model.attention_dropout or case.model.attn_logit_softcapping else "sdpa"
    model = Transformer(case.model, attention, case.activation_checkpointing, case.z_loss)
    if case.compiled:
        compile_blocks(model)
    return model


def micro_batch_size(world_size: int) -> int:
    """Rows in one forward pass, such that every rank has several: gradients are accumulated in each cell."""
    return 2 if world_size < 4 else 1


def global_batch(
    step: int, topology: Topology, rows_of_steps: tuple[int, ...] = ROWS, *, model: ModelConfig = MODEL
) -> tuple[list[MicroBatch], float]:
    """The micro-batches of this rank in a step, and the target weight of the whole global batch."""
    draw = np.random.default_rng(step)
    count = rows_of_steps[(step - 1) % len(rows_of_steps)]
    tokens = draw.integers(0, 67, (count, LENGTH + 1))
    weights = (draw.random((count, LENGTH)) > 0.2).astype(np.float32)
    batches = []
    size = micro_batch_size(topology.world_size)
    for rows in rows_of_rank(np.arange(count), topology.rank, topology.world_size, size):
        real = rows[:, None] >= 0
        held = torch.from_numpy(np.where(real, tokens[rows], 0))
        weight = torch.from_numpy(np.where(real, weights[rows], 0).astype(np.float32))
        keys = row_keys(SEED, step, torch.from_numpy(rows)) if model.has_dropout else None
        batches.append(MicroBatch(held[:, :-1].contiguous(), held[:, 1:].contiguous(), weight, None, keys))
    return batches, float(weights.sum())


def train_steps(
    engine: Engine,
    topology: Topology,
    steps: range,
    rows_of_steps: tuple[int, ...] = ROWS,
    *,
    model: ModelConfig = MODEL,
) -> Curve:
    """Train for some steps, on the batches that belong to their numbers."""
    losses, gradients = [], {}
    for step in steps:
        batches, weight = global_batch(step, topology, rows_of_steps, model=model)
        engine.begin_step(len(batches))
        loss_sum = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            loss_sum += engine.accumulate(batch, torch.tensor(1.0 / weight, dtype=torch.float32)).loss_sum
        if topology.world_size > 1:
            dist.all_reduce(loss_sum)
        if step == 1:
            gradients = engine.gradients()  # type: ignore[attr-defined]
        engine.update(1e-2)
        losses.append(loss_sum.item() / weight)
    return Curve(losses, gradients)


def curves(topology: Topology, cases: list[Case], steps: int = STEPS, saved_in: Path | None = None) -> dict[str, Curve]:
    """From initial values: the curve of each case; with a directory, a checkpoint of each at step 6 too."""
    found = {}
    for case in cases:
        engine = build(case, topology)
        engine.load(InitialState(case.model, SEED))
        before = train_steps(engine, topology, range(1, SAVED_AFTER + 1), model=case.model)
        if saved_in is not None:
            _save(engine, topology, saved_in / f"{topology.world_size}-{case}")
        after = train_steps(engine, topology, range(SAVED_AFTER + 1, steps + 1), model=case.model)
        found[str(case)] = Curve(before.losses + after.losses, before.gradients)
    return found


def changing_curves(topology: Topology, cases: list[Case], steps: int) -> dict[str, Curve]:
    """The curve of each case where steps have other numbers of micro-batches; the gradients are those of step 1."""
    found = {}
    for case in cases:
        engine = build(case, topology)
        engine.load(InitialState(MODEL, SEED))
        found[str(case)] = train_steps(engine, topology, range(1, steps + 1), CHANGING_ROWS)
    return found


def _save(engine: Engine, topology: Topology, directory: Path) -> None:
    writer = CheckpointWriter(
        directory,
        attempt=1,
        rank=topology.rank,
        world_size=topology.world_size,
        policy=CheckpointConfig(keep_last=1),
        hooks=WriterHooks(agree=Collectives().first_error),
    )
    writer.save(SAVED_AFTER, engine.snapshot(), {})
    writer.finish()
