"""Mean cross entropy over held-out sequences, shared out over the ranks."""

from __future__ import annotations

import numpy as np
import torch

from cluster.batches import PADDING, to_device
from cluster.collectives import Collectives
from cluster.engines.protocol import Engine, MicroBatch
from cluster.topology import Topology
from data_pipeline.sequences import ValidationSequences


def evaluate(
    engine: Engine,
    sequences: ValidationSequences,
    *,
    topology: Topology,
    collectives: Collectives,
    micro_batch_size: int,
    document_mask: bool,
    max_sequences: int | None,
) -> float | None:
    """Loss over the first `max_sequences` sequences of a validation split; all of them when null.

    Every rank makes the same number of forward passes, with padding rows where the sequences do not divide: each
    target counts once, on any number of ranks.

    Returns:
        Mean cross entropy in nats; None where there is no target.
    """
    total = len(sequences) if max_sequences is None else min(len(sequences), max_sequences)
    stride = topology.world_size * micro_batch_size
    loss_sum = torch.zeros((), dtype=torch.float64, device=topology.device)
    weight_sum = torch.zeros((), dtype=torch.float64, device=topology.device)
    for start in range(0, total, stride):
        first = start + topology.rank * micro_batch_size
        indices = np.arange(first, first + micro_batch_size, dtype=np.int64)
        indices[indices >= total] = PADDING
        batch = to_device(sequences.read(indices), topology.device)
        if not document_mask:
            batch = MicroBatch(batch.tokens, batch.targets, batch.loss_weights, None)
        sums = engine.evaluate(batch)
        loss_sum += sums.loss_sum
        weight_sum += sums.weight_sum
    whole_loss, whole_weight = collectives.sum([loss_sum.item(), weight_sum.item()])
    return whole_loss / whole_weight if whole_weight else None
