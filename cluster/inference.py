"""A trained model out of a run or a checkpoint, in one process, for evaluation and generation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.batches import to_device
from cluster.checkpoint import (
    CheckpointInfo,
    CheckpointReader,
    find_checkpoint,
    list_checkpoints,
    newest_verified,
    verify,
)
from cluster.checkpoint.manifest import MANIFEST_NAME
from cluster.errors import RunNotFoundError, StorageError
from cluster.resolution import resolve_model
from cluster.run_directory import RUN_NAME, TOKENIZER_NAME, read_tokenizer
from cluster.storage.check import account_of
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, storage_path
from cluster.storage.retry import retried
from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetError
from data_pipeline.sequences import ValidationSequences
from data_pipeline.stream import TokenStream
from data_pipeline.tokenizer import Tokenizer
from llm.attention import resolve_attention
from llm.config import ModelConfig
from llm.errors import AttentionBackendError, ModelError
from llm.metrics.language import NOTHING, TokenSums, token_sums
from llm.scoring import (
    TargetScores,
    continuation_passage,
    score_passages,
    score_targets,
    sliding_windows,
    window_passages,
)
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
    model = read_model(info, resolve_model(ModelConfig.from_json(run["config"]["model"]), tokenizer.vocab_size), device)
    data = run["config"]["data"]
    return LoadedModel(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        data=DataConfig(dataset="unused", seq_len=data["seq_len"], document_mask=data["document_mask"]),
        dataset_paths=dataset_paths(data),
        step=info.step,
        run_directory=run_directory,
    )


def dataset_paths(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the datasets lay that a run was trained on.

    Args:
        data: The `data` section of the configuration in a checkpoint.
    """
    named = data["dataset"]
    return (named,) if isinstance(named, str) else tuple(entry["path"] for entry in named)


def read_model(info: CheckpointInfo, config: ModelConfig, device: str = "cpu") -> Transformer:
    """The model of a checkpoint, in fp32 on the CPU.

    Args:
        info: The checkpoint, its files verified.
        config: The model, with the tokenizer's size put in.
        device: Where it will compute.

    Raises:
        CheckpointError: The checkpoint is of another model, or cannot be read.
    """
    assert info.manifest is not None
    model = Transformer(config, _attention(config, device))
    reader = CheckpointReader(info.directory, info.manifest)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reader.whole(name))
    return model


def _attention(config: ModelConfig, device: str) -> str:
    """The run's own backend, or `auto` where this device cannot have it: it binds no one how a model was trained."""
    needs = attention_needs(config, device, documents=True, training=False)
    try:
        return resolve_attention(config.attention, needs).name
    except AttentionBackendError as error:
        attention, why = resolve_attention("auto", needs)
        logger.warning("%s Attention here is %s: %s", error, attention, why)
        return attention


def evaluate_dataset(loaded: LoadedModel, dataset_path: str) -> dict[str, Any]:
    """How well the validation split of a dataset is predicted, in the rows of training; every token counts once.

    Returns:
        The figures of `TokenSums` over all sources; total_tokens (of the split: the first of each document, or without
        `document_mask` of the split, is predicted from nothing and so not scored); and in `sources` the figures of each
        of them, with its name in `source`. Sums of the sources add up to those of the whole.

    Raises:
        DatasetError: The dataset was built with another tokenizer, or has no validation split.
    """
    dataset = Dataset.open(dataset_path)
    if dataset.tokenizer_hash != loaded.tokenizer.hash:
        raise DatasetError(
            f"dataset {dataset.directory} was built with tokenizer {dataset.tokenizer_hash}, and the model was trained "
            f"with {loaded.tokenizer.hash}: their token ids mean different text. Build the dataset with "
            f"`tokenizer: {{path: {loaded.run_directory / TOKENIZER_NAME}}}`."
        )
    sequences = ValidationSequences(dataset, loaded.data.seq_len, loaded.data.document_mask)
    if len(sequences) == 0:
        raise DatasetError(
            f"dataset {dataset.directory} has no validation documents. Build it with validation_fraction above 0."
        )
    names = [source.name for source in dataset.manifest.sources]
    sums = _sums_by_source(loaded, sequences, names)
    return {
        **_figures(sum(sums, NOTHING)),
        "total_tokens": sequences.stream.tokens,
        "sources": [{"source": name, **each.figures()} for name, each in zip(names, sums, strict=True)],
    }


def _sums_by_source(loaded: LoadedModel, sequences: ValidationSequences, names: Sequence[str]) -> list[TokenSums]:
    """Sums over the targets and bytes of each source."""
    stream = sequences.stream
    starts = stream.document_starts(0, stream.tokens)
    number = {name: index for index, name in enumerate(names)}
    source_of_document = np.array([number[name] for name in stream.document_sources()], dtype=np.int64)
    sums = [
        replace(NOTHING, utf8_bytes=size)
        for size in _bytes_by_source(stream, loaded.tokenizer, source_of_document, len(names))
    ]
    columns = np.arange(1, sequences.seq_len + 1)
    for start in range(0, len(sequences), _ROWS):
        indices = np.arange(start, min(start + _ROWS, len(sequences)))
        rows = sequences.read(indices)
        batch = to_device(rows, _device(loaded))
        documents = batch.document_ids if loaded.data.document_mask else None
        places = torch.nonzero(batch.loss_weights, as_tuple=True)
        scores = score_targets(loaded.model, batch.tokens, places, batch.targets[places], documents)
        positions = (indices[:, None] * sequences.seq_len + columns)[rows.loss_weights != 0]
        documents_of = np.searchsorted(starts, positions, side="right") - 1
        found = token_sums(scores.losses, scores.ranks, source_of_document[documents_of], len(names))
        sums = [one + other for one, other in zip(sums, found, strict=True)]
    return sums


def _bytes_by_source(
    stream: TokenStream, tokenizer: Tokenizer, source_of_document: npt.NDArray[np.int64], sources: int
) -> list[int]:
    """UTF-8 bytes of the text that the documents of each source spell; a shard has no text to count."""
    totals = [0] * sources
    ends = np.cumsum(stream.document_lengths()).tolist()
    for start, end, source in zip([0, *ends[:-1]], ends, source_of_document.tolist(), strict=True):
        totals[source] += len(tokenizer.decode(stream.read(start, end)).encode())
    return totals


def evaluate_text(loaded: LoadedModel, text: str, stride: int | None = None) -> dict[str, Any]:
    """How well a text is predicted as one document, in windows of the length trained with.

    Args:
        loaded: Model and its tokenizer.
        text: The text.
        stride: Tokens by which the next window begins later; None lets windows not overlap. A smaller one gives more
            tokens a long context, for seq_len / stride times the work.

    Returns:
        The figures of `TokenSums`, the end of the document among the tokens; total_tokens (with the beginning of the
        document, which is not scored); context_tokens of a window; stride_tokens.

    Raises:
        ScoringError: The stride is none for windows of this length.
    """
    tokenizer, length = loaded.tokenizer, loaded.data.seq_len
    stride = length if stride is None else stride
    tokens = np.concatenate(([tokenizer.bos_id], tokenizer.encode(text), [tokenizer.eos_id]))
    windows = sliding_windows(len(tokens), length, stride)
    sums = replace(NOTHING, utf8_bytes=len(text.encode()))
    for start in range(0, len(windows), _ROWS):
        passages = window_passages(tokens, windows[start : start + _ROWS])
        for scores in score_passages(loaded.model, passages, batch_tokens=_ROWS * length):
            sums += token_sums(scores.losses, scores.ranks, np.zeros_like(scores.ranks), 1)[0]
    return {
        **_figures(sums),
        "total_tokens": len(tokens),
        "context_tokens": length,
        "stride_tokens": stride,
    }


def score_continuations(
    loaded: LoadedModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[TargetScores]:
    """How likely each continuation is after its context, in the order of the pairs.

    Args:
        loaded: Model.
        pairs: Token ids of context and continuation, at least one of either; a context that leaves its continuation no
            room in `loaded.context_tokens` loses its beginning.

    Raises:
        ScoringError: A continuation is empty, or does not fit whole.
    """
    passages = [continuation_passage(*pair, loaded.context_tokens) for pair in pairs]
    return score_passages(loaded.model, passages, batch_tokens=_ROWS * loaded.data.seq_len)


def _figures(sums: TokenSums) -> dict[str, Any]:
    if sums.targets == 0:
        raise ModelError("there is no token to score: the text is empty. Give a longer one.")
    return sums.figures()


def _device(loaded: LoadedModel) -> str:
    return str(next(loaded.model.parameters()).device)


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
