"""The DeepSpeed engine: ZeRO 0-3 in fp32 and bf16. The only importer of deepspeed.

Loss law: each micro-batch contributes `loss_sum * scale * world_size`, and DeepSpeed averages over ranks, so gradients
are those of the mean over the whole global batch, however rows, ranks and micro-batches fall.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from cluster.config import ZeroConfig
from cluster.engines import deepspeed_partitions, flat_state
from cluster.engines.optimizers import make_optimizer, place, set_learning_rate
from cluster.engines.protocol import FragmentState, MicroBatch, StateSource
from cluster.engines.torch_engine import clip_gradients
from cluster.engines.zero_options import zero_settings
from cluster.topology import Precision, Topology
from llm.accounting import parameter_shapes
from llm.config import OptimizerConfig
from llm.generation import NewTokens
from llm.kv_cache import KeyValueCache
from llm.layers import Block
from llm.loss import LossSums
from llm.optimizer import parameter_groups, torch_parameter_groups
from llm.transformer import Transformer

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
logging.getLogger("DeepSpeed").addFilter(lambda record: "untested optimizer" not in record.getMessage())  # tested here
warnings.filterwarnings("ignore", category=FutureWarning, module="deepspeed")
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


class DeepSpeedEngine:
    """One rank of a ZeRO data-parallel group. The torch process group must exist."""

    def __init__(
        self,
        build_model: Callable[[], Transformer],
        *,
        optimizer: OptimizerConfig,
        zero: ZeroConfig,
        precision: Precision,
        micro_batch_size: int,
        micro_batches: int,
        topology: Topology,
        compiled: bool = False,
    ) -> None:
        """Build the model and partition it.

        Args:
            build_model: Makes the empty model; stage 3 partitions it while it is made.
            optimizer: Update rule.
            zero: Stage and options, already checked against the device (`check_zero`).
            precision: Arithmetic of forward and backward.
            micro_batch_size: Sequences in one forward pass.
            micro_batches: Forward passes of this rank in one step, unless `begin_step` says otherwise.
            topology: Place of this rank.
            compiled: Whether the model's blocks are compiled.
        """
        _join_process_group(topology)
        _load_muon_uncompiled()
        self._topology = topology
        self._world_size = topology.world_size
        self._clip_norm = optimizer.gradient_clip_norm
        self._replicated = zero.stage == 0
        self._autocast = precision == "bf16" and self._replicated
        settings = deepspeed_settings(
            zero=zero,
            precision=precision,
            clip_norm=optimizer.gradient_clip_norm,
            micro_batch_size=micro_batch_size,
            micro_batches=micro_batches,
            world_size=topology.world_size,
        )
        model = _built(build_model, settings, zero.stage, precision, compiled=compiled)
        model.to(topology.device)
        groups = parameter_groups(model, optimizer.weight_decay, parameter_shapes(model.config), optimizer.name)
        client = make_optimizer(torch_parameter_groups(groups), optimizer, precision)
        group_of = {name: group.name for group in groups for name, _ in group.parameters}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        with contextlib.redirect_stdout(None):
            self._engine, self._zero, _, _ = deepspeed.initialize(model=model, optimizer=client, config=settings)
        self._inner: torch.optim.Optimizer = client if self._replicated else self._zero.optimizer
        placements = deepspeed_partitions.placements(self._engine, self._zero, zero.stage, names, group_of, topology)
        self._owned, self._held = placements.owned, placements.held
        place(client, placements.all, topology.device, model.config, partitioned=not self._replicated)

    def begin_step(self, micro_batches: int) -> None:
        """Say which backward pass is the step's last; see `Engine.begin_step`."""
        deepspeed_partitions.set_micro_batches(self._engine, micro_batches)

    def accumulate(self, batch: MicroBatch, scale: torch.Tensor) -> LossSums:
        """Forward and backward; see `Engine.accumulate`."""
        self._engine.train()
        sums = self._forward(batch)
        self._engine.backward(sums.objective_sum * (scale * self._world_size), scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
        return sums._replace(objective_sum=sums.objective_sum.detach())

    def update(self, learning_rate: float) -> torch.Tensor:
        """Clip, step, clear; see `Engine.update`."""
        set_learning_rate(self._inner, learning_rate)
        if self._replicated:
            norm = clip_gradients(list(self._engine.module.parameters()), self._clip_norm)
            if torch.isfinite(norm):
                self._engine.step()
        else:
            self._engine.step()  # updates nothing where the norm is not finite, which it then reports as inf
            norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)
        if not torch.isfinite(norm):
            self.discard()
        return norm

    def discard(self) -> None:
        """Drop the gradients; see `Engine.discard`."""
        deepspeed_partitions.clear_gradients(self._engine, self._zero, self._replicated)

    def evaluate(self, batch: MicroBatch) -> LossSums:
        """Forward only; see `Engine.evaluate`."""
        self._engine.eval()
        with torch.no_grad():
            return self._forward(batch)

    def outputs(self, batch: MicroBatch) -> torch.Tensor:
        """Forward only; see `Forward.outputs`."""
        self._engine.eval()
        with torch.no_grad(), self._arithmetic():
            outputs_BTC: torch.Tensor = self._engine(batch.tokens, document_ids_BT=batch.document_ids)
        return outputs_BTC

    def next_logits(self, new: NewTokens, cache: KeyValueCache) -> torch.Tensor:
        """Scores of the next token; see `Engine.next_logits`."""
        self._engine.eval()
        with torch.no_grad(), self._arithmetic():
            logits_B1V: torch.Tensor = self._engine(
                new.tokens,
                document_ids_BT=new.document_ids,
                cache=cache,
                positions_BT=new.positions,
                last_only=True,
            )
        return logits_B1V[:, -1]

    def snapshot(self, reuse: Sequence[FragmentState] = ()) -> list[FragmentState]:
        """Host copies of this rank's part; see `Engine.snapshot`."""
        return flat_state.snapshot(self._owned, self._inner, reuse)

    def load(self, source: StateSource) -> None:
        """Set this rank's part, then the parameters that all ranks compute with; see `Engine.load`."""
        flat_state.load(self._held, self._inner, source)
        deepspeed_partitions.refresh_parameters(self._zero, self._replicated)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Whole fp32 gradients by parameter name, between `accumulate` and `update`; collective, for comparisons."""
        from deepspeed.utils import safe_get_full_grad

        return {
            name: safe_get_full_grad(parameter).detach().float().clone()
            for name, parameter in self._engine.module.named_parameters()
        }

    def _forward(self, batch: MicroBatch) -> LossSums:
        with self._arithmetic():
            sums: LossSums = self._engine(
                batch.tokens,
                batch.targets,
                batch.loss_weights,
                batch.document_ids,
                dropout_keys_B=batch.dropout_keys,
            )
        return sums

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast where fp32 parameters compute in bf16."""
        if not self._autocast:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self._topology.device).type, dtype=torch.bfloat16)


def deepspeed_settings(
    *,
    zero: ZeroConfig,
    precision: Precision,
    clip_norm: float | None,
    micro_batch_size: int,
    micro_batches: int,
    world_size: int,
) -> dict[str, Any]:
    """DeepSpeed's configuration for a run; a pure function.

    Gradients are reduced and added up in fp32 whatever the precision, so that the loss law does not depend on the
    world size beyond rounding. ZeRO 0 in bf16 keeps fp32 parameters and computes under autocast, because DeepSpeed has
    no stage 0 with bf16 parameters and fp32 accumulation. An optimizer that is offloaded stays ours, whose fused
    steps have CPU forms: DeepSpeed's own is a C++ extension that each node would compile at the first start.
    """
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "train_batch_size": micro_batch_size * micro_batches * world_size,
        "zero_optimization": zero_settings(zero),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**12,
        "communication_data_type": "fp32",
    }
    if zero.stage > 0:
        settings["gradient_clipping"] = clip_norm if clip_norm is not None else 0.0
        if precision == "bf16":
            settings["bf16"] = {"enabled": True}
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _built(
    build_model: Callable[[], Transformer],
    settings: dict[str, Any],
    stage: int,
    precision: Precision,
    *,
    compiled: bool,
) -> Transformer:
    """An empty model: stage 3 partitions it while it is built, so that no rank ever holds it whole.

    There DeepSpeed must take the type from its settings: one that it is given counts only where the device has fp16,
    and is bf16 on every other, most CPUs among them (`Init._set_dtype` of 0.19.8).
    """
    if stage == 3:
        with deepspeed.zero.Init(config_dict_or_path=settings):
            model = build_model()
        if compiled:  # hooks inside a block would break its graph: its parameters come and go together
            deepspeed.utils.set_z3_leaf_modules(model, [Block])
        return model
    return build_model().to(torch.bfloat16 if precision == "bf16" and stage > 0 else torch.float32)


def _join_process_group(topology: Topology) -> None:
    """Make DeepSpeed use torch's process group, and keep it from compiling its shared-memory op.

    Without the first, zero.Init silently takes the world for one rank and partitions nothing; the op is unused under
    Ray and takes 50 s to build on a CPU.
    """
    if not dist.is_initialized():
        raise RuntimeError("the torch process group does not exist yet: create it before the DeepSpeed engine.")
    os.environ.setdefault("LOCAL_RANK", str(topology.local_rank))  # DeepSpeed refuses to start without it
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def _load_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon without its `torch.compile` decorators.

    Every ZeRO optimizer imports it, only to see that it is not the one in use (ours is `cluster.engines.muon`); the
    decorators would load torch's compiler, seconds of each start.
    """
    name = "deepspeed.runtime.zero.muon.original_muon"
    if name in sys.modules:
        return
    compile_with = deepspeed.runtime.compiler.compile
    deepspeed.runtime.compiler.compile = lambda *arguments, **options: lambda function: function
    try:
        importlib.import_module(name)
    finally:
        deepspeed.runtime.compiler.compile = compile_with
