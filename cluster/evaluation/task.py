"""One checkpoint's evaluation in one process, beside the training: plain torch, the sums of `cluster.evaluation`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cluster.checkpoint import CheckpointInfo, find_checkpoint, verify
from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.engines.protocol import MicroBatch
from cluster.errors import CheckpointError, RunNotFoundError, RunRefusedError
from cluster.evaluation.beside import DueCheckpoint, Outcome, Sample
from cluster.evaluation.in_loop import evaluate_datasets, evaluated_names
from cluster.inference import read_model
from cluster.resolution import model_of_run
from cluster.run_directory import TOKENIZER_NAME
from cluster.storage.operations import storage_path
from cluster.text_samples import TextSampler, samples_are_written
from cluster.topology import Topology, set_arithmetic
from data_pipeline.chat_template import ChatTemplate
from data_pipeline.dataset import Dataset
from data_pipeline.plan import shared_chat_template
from llm.config import ModelConfig
from llm.generation import NewTokens, next_logits
from llm.kv_cache import KeyValueCache
from llm.loss import LossSums
from llm.transformer import Transformer


class PlainModel:
    """A whole model in this process, which computes in the precision that it was trained in."""

    def __init__(self, model: Transformer) -> None:
        self._model = model

    def evaluate(self, batch: MicroBatch) -> LossSums:
        """Forward only; see `Forward.evaluate`."""
        with torch.no_grad():
            sums: LossSums = self._model(batch.tokens, batch.targets, batch.loss_weights, batch.document_ids)
            return sums

    def outputs(self, batch: MicroBatch) -> torch.Tensor:
        """Forward only; see `Forward.outputs`."""
        with torch.no_grad():
            outputs_BTC: torch.Tensor = self._model(batch.tokens, document_ids_BT=batch.document_ids)
            return outputs_BTC

    def next_logits(self, new: NewTokens, cache: KeyValueCache) -> torch.Tensor:
        """Scores of the next token; see `Forward.next_logits`."""
        return next_logits(self._model, new, cache)


def evaluate_checkpoint(config: RunConfig, due: DueCheckpoint, topology: Topology) -> Outcome | None:
    """Measure the held-out loss of a checkpoint and let its model write.

    Args:
        config: The run; paths absolute.
        due: The checkpoint.
        topology: Of this process, alone.

    Returns:
        All that an evaluation in the training would have given; None where the checkpoint is not there any more, or
        its step has another by now.

    Raises:
        CheckpointError: It is damaged, or cannot be read here and now.
        data_pipeline.errors.DataError: The data cannot be used.
    """
    set_arithmetic(topology, deterministic=config.train.deterministic)
    info = _find(config, due)
    if info is None:
        return None
    datasets = [Dataset.open(entry.path) for entry in config.data.entries]
    verify(info)
    shape = model_of_run(config, datasets[0])
    model = _model(shape, info, topology)
    found = evaluate_datasets(model, shape, datasets, config, topology=topology, collectives=Collectives())
    rows = tuple(each.fields for each in found)
    samples = _samples(config, model, due.step, topology, shared_chat_template(datasets))
    expected, named = evaluated_names(datasets, config), [row["name"] for row in rows]
    if list(expected) != named or not (rows or samples):
        return Outcome(
            due=due,
            problem=f"there is nothing to measure: of the datasets {list(expected)}, {named} gave a loss, and "
            f"{len(samples)} texts were written. Build the datasets with validation_fraction above 0.",
        )
    return Outcome(due=due, rows=rows, samples=samples)


def require_something_to_evaluate(config: RunConfig, datasets: Sequence[Dataset]) -> None:
    """Refuse evaluations beside the training of which none could bring anything.

    In the training such an evaluation writes no line and is over. Beside it a line is what tells that a checkpoint was
    evaluated, and what waits for none was asked for by name.

    Args:
        config: The run.
        datasets: Its datasets, in order.

    Raises:
        RunRefusedError: There are neither held-out documents nor text samples.
        data_pipeline.errors.DataError: The tokenizer is damaged.
    """
    if not config.evaluation.beside_training or evaluated_names(datasets, config):
        return
    if not samples_are_written(config, datasets[0].tokenizer(), shared_chat_template(datasets)):
        raise RunRefusedError(
            f"evaluation.beside_training is on and would measure nothing: of {[each.name for each in datasets]} no "
            f"dataset has held-out documents, and evaluation.prompts = {list(config.evaluation.prompts)} with "
            f"evaluation.sample_tokens = {config.evaluation.sample_tokens} give no text. Build a dataset with "
            "validation_fraction above 0, let the model write (sample_tokens above 0, a prompt no longer than "
            "data.seq_len), or leave evaluation.beside_training out."
        )


def _find(config: RunConfig, due: DueCheckpoint) -> CheckpointInfo | None:
    try:
        info = find_checkpoint(storage_path(config.storage) / config.name, due.step)
    except RunNotFoundError:
        return None
    assert info.manifest is not None
    return info if identity_of(info) == due else None


def identity_of(info: CheckpointInfo) -> DueCheckpoint:
    """What tells a checkpoint from all others.

    Raises:
        CheckpointError: It has no readable manifest.
    """
    if info.manifest is None:
        raise CheckpointError(f"checkpoint {info.directory} has no manifest that could be read.")
    return DueCheckpoint(
        step=info.step, attempt=info.manifest.attempt, created_unix_seconds=info.manifest.created_unix_seconds
    )


def _model(shape: ModelConfig, info: CheckpointInfo, topology: Topology) -> PlainModel:
    assert info.manifest is not None
    dtype = torch.bfloat16 if info.manifest.run["layout"]["precision"] == "bf16" else torch.float32
    return PlainModel(read_model(info, shape, topology.device, dtype))


def _samples(
    config: RunConfig, model: PlainModel, step: int, topology: Topology, template: ChatTemplate | None
) -> tuple[Sample, ...]:
    sampler = TextSampler(
        config,
        tokenizer_path=storage_path(config.storage) / config.name / TOKENIZER_NAME,
        chat_template=template,
        topology=topology,
        collectives=Collectives(),
    )
    return tuple(Sample(name=each.label, prompt=each.prompt, text=each.text) for each in sampler.write(model, step))
