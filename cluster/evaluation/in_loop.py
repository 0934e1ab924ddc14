"""Mean cross entropy over held-out sequences, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cluster.batches import PADDING, to_device
from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.engines.protocol import Forward, MicroBatch
from cluster.evaluation.labelled import predict
from cluster.record.logs import perplexity
from cluster.topology import Topology
from data_pipeline.dataset import Dataset
from data_pipeline.examples import Examples
from data_pipeline.sequences import ValidationSequences
from llm.config import ModelConfig
from llm.metrics.measured import Measured


@dataclass(frozen=True)
class Evaluated:
    """What one dataset gave."""

    fields: dict[str, Any]
    """Of an `eval` line: name, eval/loss (nats) and eval/perplexity; or of a task that learns labels its figures."""
    measured: Measured | None = None
    """Of such a task, on rank 0: all there is to show."""


def evaluate_datasets(
    model: Forward,
    shape: ModelConfig,
    datasets: Sequence[Dataset],
    config: RunConfig,
    *,
    topology: Topology,
    collectives: Collectives,
    resamples: int = 0,
) -> Iterator[Evaluated]:
    """Evaluate one dataset after another, those with a validation split; called on all ranks.

    Args:
        model: What computes.
        shape: Of the model; its head says what it predicts.
        datasets: In the order of the configuration.
        config: The run.
        topology: Place of this rank.
        collectives: Of the ranks.
        resamples: Bootstrap draws for intervals of what labels are measured by; 0 for none.
    """
    for dataset, label in zip(datasets, dataset_labels(datasets), strict=True):
        if shape.head is not None:
            found = predict(
                model,
                shape.head,
                Examples(dataset, "validation", config.data.seq_len, one_length=config.train.compile),
                topology=topology,
                collectives=collectives,
                micro_batch_size=config.train.micro_batch_size,
                max_examples=config.evaluation.max_sequences,
            )
            if found is not None:
                sources = dataset.split("validation").document_sources()
                measured = found.measured(config.task, dataset.labels.names, sources=sources, resamples=resamples)
                yield Evaluated({"name": label, "eval/loss": found.loss, **_figures(measured)}, measured)
            continue
        sequences = validation_of(dataset, config)
        if len(sequences) == 0:
            continue
        loss = evaluate(
            model,
            sequences,
            topology=topology,
            collectives=collectives,
            micro_batch_size=config.train.micro_batch_size,
            document_mask=config.data.document_mask,
            max_sequences=config.evaluation.max_sequences,
        )
        if loss is not None:
            yield Evaluated({"name": label, "eval/loss": loss, "eval/perplexity": perplexity(loss)})


def _figures(measured: Measured | None) -> dict[str, float | None]:
    """Fields of measures, the one that checkpoints are chosen by first."""
    if measured is None:
        return {}
    first = measured.selection.name
    ordered = {first: measured.headline[first], **measured.headline}
    return {f"eval/{key}": value for key, value in ordered.items()}


def evaluate(
    model: Forward,
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
        sums = model.evaluate(batch)
        loss_sum += sums.loss_sum
        weight_sum += sums.weight_sum
    whole_loss, whole_weight = collectives.sum([loss_sum.item(), weight_sum.item()])
    return whole_loss / whole_weight if whole_weight else None


def validation_of(dataset: Dataset, config: RunConfig) -> ValidationSequences:
    """The validation split of a dataset, cut and weighted as a run's data are."""
    data = config.data
    return ValidationSequences(
        dataset, data.seq_len, data.document_mask, answers_only=config.answers_only, packing=data.packing
    )


def evaluated_names(datasets: Sequence[Dataset], config: RunConfig) -> tuple[str, ...]:
    """Names of the datasets that have something to evaluate on."""
    return tuple(
        label
        for dataset, label in zip(datasets, dataset_labels(datasets), strict=True)
        if len(validation_of(dataset, config)) > 0
    )


def dataset_labels(datasets: Sequence[Dataset]) -> list[str]:
    """Names under which datasets are evaluated; those that share a name get their fingerprint's first letters too."""
    names = [dataset.name for dataset in datasets]
    return [
        name if names.count(name) == 1 else f"{name}-{dataset.fingerprint[:6]}"
        for name, dataset in zip(names, datasets, strict=True)
    ]
