"""What a configuration leaves open, resolved once: data plan, vocabulary, precision, attention."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from cluster.config import RunConfig
from cluster.engines.zero_options import check_zero, check_zero_precision
from cluster.errors import RunRefusedError
from cluster.tasks import head_in, head_of, learns_labels
from cluster.topology import Layout, Precision, Topology, resolve_precision
from cluster.versions import library_versions
from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan
from llm.attention import ResolvedAttention, resolve_attention
from llm.config import ModelConfig
from llm.expert_backends import resolve_experts
from llm.transformer import attention_needs

if TYPE_CHECKING:
    from cluster.checkpoint import Manifest

_EMBEDDING = "model.embed_tokens.weight"


def open_plan(config: RunConfig) -> DataPlan:
    """The data plan of a run, its datasets opened; paths absolute.

    Raises:
        data_pipeline.errors.DataError: A dataset cannot be used.
    """
    return DataPlan(
        [Dataset.open(entry.path) for entry in config.data.entries],
        config.data,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        batch_size_warmup=config.train.batch_size_warmup,
        answers_only=config.answers_only,
    )


def trained_model(manifest: Manifest) -> ModelConfig:
    """The model whose weights a checkpoint holds: its vocabulary as large as the embedding there, its task's head."""
    model = replace(ModelConfig.from_json(manifest.run["config"]["model"]), head=head_in(manifest.run))
    embedded = manifest.pieces[_EMBEDDING][0].shape[0]
    return model if model.vocab_size is not None else replace(model, vocab_size=embedded)


def resolve_model(model: ModelConfig, vocab_size: int) -> ModelConfig:
    """The model's shape with the tokenizer's size put in.

    Raises:
        RunRefusedError: The configuration names a smaller size.
    """
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise RunRefusedError(
            f"model.vocab_size is {model.vocab_size}, and the dataset's tokenizer has {vocab_size} pieces: a token "
            "without an embedding cannot be read. Leave model.vocab_size out, or raise it."
        )
    return model if model.vocab_size is not None else replace(model, vocab_size=vocab_size)


def model_of_run(config: RunConfig, dataset: Dataset) -> ModelConfig:
    """The model that a run trains: the tokenizer's size and the head of its task put in.

    Args:
        config: The run.
        dataset: Its first; the others have the same tokenizer and labels.

    Raises:
        RunRefusedError: The configuration names a smaller vocabulary, or the dataset has other labels than it needs.
        data_pipeline.errors.DatasetError: It has none.
    """
    model = resolve_model(config.model, dataset.vocab_size)
    if not learns_labels(config.task):
        return model
    try:
        return replace(model, head=head_of(config.task, dataset.labels))
    except ValueError as error:
        raise RunRefusedError(f"{dataset.directory}: {error}") from error


def masks_documents(data: DataConfig) -> bool:
    """Whether rows hold documents that must not see each other."""
    return data.document_mask and data.packing != "examples"


def attention_of(config: RunConfig, device: str, precision: Precision) -> ResolvedAttention:
    """The attention backend of a run's training.

    Args:
        config: The run.
        device: What its workers compute on; of a GPU, that of this process.
        precision: Resolved.

    Raises:
        AttentionBackendError: The one that is named cannot serve there.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    documents = masks_documents(config.data)
    needs = attention_needs(config.model, device, documents=documents, training=True, dtype=dtype)
    return resolve_attention(config.model.attention, needs)


def resolve_layout(config: RunConfig, topology: Topology, zero_stage: int | None) -> tuple[Layout, list[str]]:
    """The layout of an attempt, and why each `auto` became what it is, for log and record.

    Args:
        config: The run.
        topology: Place of this rank.
        zero_stage: Stage the engine works at; None for plain torch, which partitions nothing and takes no ZeRO option.

    Raises:
        RunRefusedError: A ZeRO option that the device, the workers or the precision cannot serve.
        AttentionBackendError: The attention backend that is named cannot serve there.
    """
    precision, why_precision = resolve_precision(config.train.precision, topology.device)
    if zero_stage is not None:
        check_zero(config.zero, device=topology.device, workers=topology.world_size)
        check_zero_precision(config.zero, precision)
    attention, why_attention = attention_of(config, topology.device, precision)
    experts, why_experts = None, ""
    if config.model.num_experts is not None:
        experts, why_experts = resolve_experts(config.model.experts)
    layout = Layout(
        world_size=topology.world_size,
        zero_stage=zero_stage,
        micro_batch_size=config.train.micro_batch_size,
        precision=precision,
        threads=topology.threads,
        device=topology.device.split(":")[0],
        attention=attention,
        experts=experts,
        compiled=config.train.compile,
        versions=library_versions(),
    )
    resolved = [f"precision {precision}: {why_precision}", f"attention {attention}: {why_attention}"]
    if experts is not None:
        resolved.append(f"experts {experts}: {why_experts}")
    return layout, resolved
