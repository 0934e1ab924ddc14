"""Predictions for the labelled documents of a validation split, shared out over the ranks and gathered on one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from cluster.batches import PADDING, to_device
from cluster.collectives import Collectives
from cluster.engines.protocol import Forward
from cluster.topology import Topology
from data_pipeline.examples import Examples
from llm.errors import ModelError
from llm.head_config import HeadConfig
from llm.heads import HEADS
from llm.metrics.measure import measure
from llm.metrics.measured import Measured, Task
from llm.metrics.measures import Outputs

logger = logging.getLogger(__name__)

_DRAWN_VALUES = 200_000
"""Probabilities of which a thousand draws take some ten seconds, for which all ranks wait."""


@dataclass(frozen=True)
class _Said:
    """What was said of some documents: values and labels of each target, the targets of a document together."""

    documents: npt.NDArray[np.int64]
    """Shape: (documents,)."""
    lengths: npt.NDArray[np.int64]
    """Targets of each. Shape: (documents,)."""
    values: npt.NDArray[np.float64]
    """Probabilities, or numbers. Shape: (targets, C)."""
    labels: npt.NDArray[Any]
    """Shape: (targets,), or (targets, C) where there are any number of C."""


@dataclass(frozen=True)
class Predictions:
    """What a model said of all documents that were looked at, in their order, and what is true of them."""

    loss: float
    """Mean over targets."""
    said: _Said | None
    """On rank 0 alone."""

    def measured(
        self, task: str, names: tuple[str, ...], *, sources: Sequence[str] = (), resamples: int = 0
    ) -> Measured | None:
        """The measures of a task; None on other ranks than 0, and where there is nothing to measure them from.

        A figure that cannot be computed ends no training: it is told, and the loss stands alone.

        Args:
            task: One that learns labels.
            names: Of the classes.
            sources: Where each document comes from, to compare the sources where there are several.
            resamples: Bootstrap draws for intervals; 0 for none, nor are there any for what would take minutes.
        """
        said = self.said
        if said is None or not np.isfinite(said.values).all():
            return None
        groups = {}
        if len(set(sources)) > 1:
            stands = said.documents[said.lengths > 0]
            groups = {"source": [sources[document] for document in stands.tolist()]}
        draws = resamples if said.values.size <= _DRAWN_VALUES else 0
        try:
            return measure(cast(Task, task), _outputs(task, said), names=names, groups=groups, resamples=draws)
        except (ModelError, ValueError, MemoryError) as error:
            logger.warning("%s predictions could not be measured: %s", len(said.documents), error)
            return None


def _outputs(task: str, said: _Said) -> Outputs:
    if task == "regression":
        return Outputs(labels=said.labels.astype(np.float64), predictions=said.values[:, 0])
    if task == "token_classification":  # a document none of whose words has a label says nothing
        lengths = said.lengths[said.lengths > 0]
        return Outputs(labels=said.labels, predictions=said.values.argmax(axis=1), lengths=lengths)
    return Outputs(labels=said.labels.astype(np.int64), probabilities=said.values)


def predict(
    model: Forward,
    head: HeadConfig,
    examples: Examples,
    *,
    topology: Topology,
    collectives: Collectives,
    micro_batch_size: int,
    max_examples: int | None,
) -> Predictions | None:
    """Ask a model about the first `max_examples` documents of a split; about all of them when null.

    Called on all ranks, which make the same number of forward passes, with padding where the documents do not divide:
    each is looked at once, on any number of ranks.

    Returns:
        None where no document has a target.

    Raises:
        RuntimeError: A document was lost or counted twice, which would be a defect of this program.
    """
    total = len(examples) if max_examples is None else min(len(examples), max_examples)
    order = np.argsort(-examples.lengths[:total], kind="stable")
    parts: list[_Said] = []
    loss_sum = weight_sum = 0.0
    for start in range(0, total, topology.world_size * micro_batch_size):
        first = start + topology.rank * micro_batch_size
        rows = np.full(micro_batch_size, PADDING, dtype=np.int64)
        mine = order[first : first + micro_batch_size]
        rows[: len(mine)] = mine
        batch = examples.read(rows)
        on_device = to_device(batch, topology.device)
        outputs_BTC = model.outputs(on_device)
        kind = HEADS[head.predicts]
        sums = kind.sums(outputs_BTC, on_device.targets, on_device.loss_weights)
        loss_sum += sums.loss_sum.double().item()
        weight_sum += sums.weight_sum.double().item()
        stands = batch.loss_weights > 0
        values = kind.predictions(outputs_BTC[torch.from_numpy(stands).to(outputs_BTC.device)]).double().cpu().numpy()
        real = rows != PADDING
        parts.append(_Said(rows[real], stands.sum(axis=1)[real], values, batch.targets[stands]))
    whole_loss, whole_weight = collectives.sum([loss_sum, weight_sum])
    gathered = collectives.to_main(parts)
    if not whole_weight:
        return None
    said = None
    if gathered is not None:
        said = _in_order([part for each in gathered for part in each])
        if not np.array_equal(said.documents, np.arange(total)):
            raise RuntimeError(f"of {total} documents {len(said.documents)} were evaluated. Please report this.")
    return Predictions(whole_loss / whole_weight, said)


def _in_order(parts: list[_Said]) -> _Said:
    """All parts as one, by the number of the document."""
    documents = np.concatenate([part.documents for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    order = np.argsort(documents, kind="stable")
    ends = np.cumsum(lengths)
    targets = [np.arange(ends[place] - lengths[place], ends[place]) for place in order]
    picked = np.concatenate(targets) if targets else np.zeros(0, dtype=np.int64)
    return _Said(
        documents=documents[order],
        lengths=lengths[order],
        values=np.concatenate([part.values for part in parts])[picked],
        labels=np.concatenate([part.labels for part in parts])[picked],
    )
