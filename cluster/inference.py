"""A trained model out of a run or a checkpoint, in one process, for evaluation and generation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.checkpoint import (
    CheckpointInfo,
    CheckpointReader,
    find_checkpoint,
    list_checkpoints,
    newest_verified,
    verify,
)
from cluster.checkpoint.manifest import MANIFEST_NAME
from cluster.conversation import chat_template_of
from cluster.errors import RunNotFoundError, RunRefusedError, StorageError
from cluster.resolution import resolve_model
from cluster.run_directory import RUN_NAME, TOKENIZER_NAME, read_tokenizer
from cluster.storage.check import account_of
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, storage_path
from cluster.storage.retry import retried
from cluster.tasks import LABELS, head_in
from data_pipeline.chat_template import ChatTemplate
from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetError
from data_pipeline.tokenizer import Tokenizer
from llm.attention import resolve_attention
from llm.config import ModelConfig
from llm.errors import AttentionBackendError
from llm.transformer import Transformer, attention_needs

logger = logging.getLogger(__name__)

_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model with its weights, its tokenizer and what it was trained on."""

    model: Transformer
    tokenizer: Tokenizer
    data: DataConfig
    dataset_paths: tuple[str, ...]
    step: int
    run_directory: StoragePath
    task: str = "pretrain"
    chat_template: ChatTemplate | None = None
    """What the conversations that it was trained on were written with; None where it was trained on text."""
    label_kind: str | None = None
    """Of a task that learns labels; see `data_pipeline.label_config.LabelsConfig`."""
    label_names: tuple[str, ...] = ()
    """What its outputs mean; none of numbers."""

    @property
    def answers_only(self) -> bool:
        """Whether answers of conversations alone were learned."""
        return self.task == "instruction"

    @property
    def context_tokens(self) -> int:
        """Tokens read at once at most: what the model allows, or where it sets no limit the length trained with."""
        return self.model.config.max_position_embeddings or self.data.seq_len


def load_run(reference: str, device: str = "cpu") -> LoadedModel:
    """Load the newest good checkpoint of a run, or one checkpoint, in fp32.

    Args:
        reference: A run's directory or URI, or `RUN/checkpoints/step-00000100`.
        device: Where the model computes.

    Raises:
        RunNotFoundError: There is no such run or checkpoint.
        CheckpointError: The checkpoint is damaged.
        StorageError: The store does not answer, or refuses to.
    """
    place = storage_path(reference)
    info, run_directory = _resolve(place if isinstance(place, ObjectPath) else place.expanduser().resolve())
    assert info.manifest is not None
    run = info.manifest.run
    tokenizer = read_tokenizer(run_directory / TOKENIZER_NAME)
    shape = replace(ModelConfig.from_json(run["config"]["model"]), head=head_in(run))
    config = resolve_model(shape, tokenizer.vocab_size)
    data, labels = run["config"]["data"], run.get(LABELS, {})
    return LoadedModel(
        model=read_model(info, config, device, torch.float32),
        tokenizer=tokenizer,
        data=DataConfig(
            dataset="unused",
            seq_len=data["seq_len"],
            document_mask=data["document_mask"],
            packing=data.get("packing", "stream"),
        ),
        dataset_paths=dataset_paths(data),
        step=info.step,
        run_directory=run_directory,
        task=run["config"].get("task", "pretrain"),
        chat_template=chat_template_of(run),
        label_kind=labels.get("kind"),
        label_names=tuple(labels.get("names", ())),
    )


def dataset_paths(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the datasets lay that a run was trained on.

    Args:
        data: The `data` section of the configuration in a checkpoint.
    """
    named = data["dataset"]
    return (named,) if isinstance(named, str) else tuple(entry["path"] for entry in named)


def read_model(info: CheckpointInfo, config: ModelConfig, device: str, dtype: torch.dtype) -> Transformer:
    """The model of a checkpoint, not for training.

    Args:
        info: The checkpoint, its files verified.
        config: The model, with the tokenizer's size put in.
        device: Where it computes.
        dtype: In which it computes; the checkpoint's numbers are fp32.

    Raises:
        CheckpointError: The checkpoint is of another model, or cannot be read.
    """
    assert info.manifest is not None
    model = Transformer(config, _attention(config, device, dtype))
    reader = CheckpointReader(info.directory, info.manifest)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reader.whole(name))
    return model.to(device=device, dtype=dtype).eval()


def _attention(config: ModelConfig, device: str, dtype: torch.dtype) -> str:
    """The run's own backend, or `auto` where this device cannot have it: it binds no one how a model was trained."""
    needs = attention_needs(config, device, documents=True, training=False, dtype=dtype)
    try:
        return resolve_attention(config.attention, needs).name
    except AttentionBackendError as error:
        attention, why = resolve_attention("auto", needs)
        logger.warning("%s Attention here is %s: %s", error, attention, why)
        return attention


def check_tokenizer(loaded: LoadedModel, dataset: Dataset) -> None:
    """Refuse a dataset whose token ids mean something else to the model.

    Raises:
        DatasetError: It was built with another tokenizer.
    """
    if dataset.tokenizer_hash != loaded.tokenizer.hash:
        raise DatasetError(
            f"dataset {dataset.directory} was built with tokenizer {dataset.tokenizer_hash}, and the model was trained "
            f"with {loaded.tokenizer.hash}: their token ids mean different text. Build the dataset with "
            f"`tokenizer: {{path: {loaded.run_directory / TOKENIZER_NAME}}}`."
        )


def require_text_model(loaded: LoadedModel) -> None:
    """Refuse a model that predicts labels where text is to be predicted.

    Raises:
        RunRefusedError: It is one.
    """
    if loaded.model.config.head is not None:
        raise RunRefusedError(
            f"{loaded.run_directory} predicts labels (task {loaded.task}), not text. Use predict, or evaluate on a "
            "labelled dataset."
        )


def _is_there(path: StoragePath) -> bool:
    try:
        return retried(path.is_file, f"looking for {path}")
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {account_of(path, error)}.") from error


def _resolve(path: StoragePath) -> tuple[CheckpointInfo, StoragePath]:
    if path.parent.name == "checkpoints" and _is_there(path / MANIFEST_NAME):
        run_directory = path.parent.parent
        info = find_checkpoint(run_directory, int(path.name.removeprefix("step-")))
        verify(info)
        return info, run_directory
    if not _is_there(path / RUN_NAME):
        raise RunNotFoundError(
            f"{path} is neither a run nor a checkpoint: a run has a run.json, a checkpoint a {MANIFEST_NAME}. Name a "
            "run's directory (storage/name), or one of its checkpoints/step-…"
        )
    newest = newest_verified(path)  # asked for the run, not for one checkpoint: a damaged one is passed over
    if newest is None:
        return find_checkpoint(path), path
    for info in list_checkpoints(path):
        if info.step > newest.step:
            reason = info.rejection.reason if info.rejection is not None else info.problem
            logger.warning("step %d is taken, since step %d cannot be used: %s", newest.step, info.step, reason)
    return newest, path
