"""The plain-torch engine: one process, no partitioning. The reference that DeepSpeed is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cluster.engines import flat_state
from cluster.engines.flat_state import Placement
from cluster.engines.optimizers import make_optimizer, place, set_learning_rate
from cluster.engines.protocol import Fragment, FragmentState, MicroBatch, StateSource
from cluster.topology import Precision
from llm.config import OptimizerConfig
from llm.generation import NewTokens, next_logits
from llm.kv_cache import KeyValueCache
from llm.loss import LossSums
from llm.optimizer import parameter_groups
from llm.transformer import Transformer


class TorchEngine:
    """Model, fp32 masters and optimizer in one process.

    In fp32 the masters are the model's parameters. In bf16 the model computes in bf16, gradients are added up in fp32
    and the update is made on fp32 masters: the semantics of ZeRO 1-3.
    """

    def __init__(
        self, model: Transformer, *, optimizer: OptimizerConfig, precision: Precision, device: str = "cpu"
    ) -> None:
        groups = parameter_groups(model, optimizer.weight_decay, optimizer=optimizer.name)
        self._clip_norm = optimizer.gradient_clip_norm
        self._model = model.to(device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
        self._pairs: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        self._placements: list[Placement] = []
        options = []
        for group in groups:
            masters = []
            for name, parameter in group.parameters:
                master = (
                    parameter
                    if precision == "fp32"
                    else torch.nn.Parameter(torch.empty_like(parameter, dtype=torch.float32))
                )
                fragment = Fragment(name, group.name, tuple(parameter.shape), 0, parameter.numel())
                self._placements.append(Placement(fragment, master, 0))
                self._pairs.append((parameter, master))
                masters.append(master)
            options.append({"params": masters, "weight_decay": group.weight_decay, "name": group.name})
        self._optimizer = make_optimizer(options, optimizer, precision)
        place(self._optimizer, self._placements, device, model.config, partitioned=False)
        self._separate_masters = precision == "bf16"

    def begin_step(self, micro_batches: int) -> None:
        """Nothing has to be ready for it: gradients are shared with no other process. See `Engine.begin_step`."""

    def accumulate(self, batch: MicroBatch, scale: torch.Tensor) -> LossSums:
        """Forward and backward; see `Engine.accumulate`."""
        self._model.train()
        sums = self._forward(batch)
        (sums.objective_sum * scale).backward()  # type: ignore[no-untyped-call]
        if self._separate_masters:
            for parameter, master in self._pairs:
                if parameter.grad is None:
                    continue
                if master.grad is None:
                    master.grad = parameter.grad.float()
                else:
                    master.grad.add_(parameter.grad)
                parameter.grad = None
        return sums._replace(objective_sum=sums.objective_sum.detach())

    def update(self, learning_rate: float) -> torch.Tensor:
        """Clip, step, clear; see `Engine.update`."""
        set_learning_rate(self._optimizer, learning_rate)
        masters = [master for _, master in self._pairs]
        norm = clip_gradients(masters, self._clip_norm)
        if torch.isfinite(norm):
            self._optimizer.step()
            self._refresh_model()
        self.discard()
        return norm

    def discard(self) -> None:
        """Drop the gradients; see `Engine.discard`."""
        for parameter, master in self._pairs:
            parameter.grad = None
            master.grad = None

    def evaluate(self, batch: MicroBatch) -> LossSums:
        """Forward only; see `Engine.evaluate`."""
        self._model.eval()
        with torch.no_grad():
            return self._forward(batch)

    def outputs(self, batch: MicroBatch) -> torch.Tensor:
        """Forward only; see `Forward.outputs`."""
        self._model.eval()
        with torch.no_grad():
            outputs_BTC: torch.Tensor = self._model(batch.tokens, document_ids_BT=batch.document_ids)
        return outputs_BTC

    def next_logits(self, new: NewTokens, cache: KeyValueCache) -> torch.Tensor:
        """Scores of the next token; see `Engine.next_logits`."""
        return next_logits(self._model.eval(), new, cache)

    def snapshot(self, reuse: Sequence[FragmentState] = ()) -> list[FragmentState]:
        """Host copies of everything; see `Engine.snapshot`."""
        return flat_state.snapshot(self._placements, self._optimizer, reuse)

    def load(self, source: StateSource) -> None:
        """Set everything; see `Engine.load`."""
        flat_state.load(self._placements, self._optimizer, source)
        self._refresh_model()

    def gradients(self) -> dict[str, torch.Tensor]:
        """fp32 gradients by parameter name, between `accumulate` and `update`; for comparisons."""
        return {
            placement.fragment.name: placement.flat.grad.clone()
            for placement in self._placements
            if placement.flat.grad is not None
        }

    def _forward(self, batch: MicroBatch) -> LossSums:
        sums: LossSums = self._model(
            batch.tokens,
            batch.targets,
            batch.loss_weights,
            batch.document_ids,
            dropout_keys_B=batch.dropout_keys,
        )
        return sums

    def _refresh_model(self) -> None:
        if self._separate_masters:
            with torch.no_grad():
                for parameter, master in self._pairs:
                    parameter.copy_(master)


def clip_gradients(parameters: list[torch.nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Global 2-norm of the gradients; scales them down to `max_norm` where they exceed it (Pascanu et al., 2013)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
