"""Hugging Face directories of runs, without the proof that the verb makes."""

from __future__ import annotations

from pathlib import Path

from cluster.checkpoint import CheckpointReader, find_checkpoint
from cluster.config import RunConfig
from cluster.resolution import trained_model
from cluster.run_directory import TOKENIZER_NAME, read_tokenizer
from cluster.storage.operations import storage_path
from llm.hugging_face.export import export_model
from llm.hugging_face.sentencepiece_model import read_sentencepiece


def write_export(run: RunConfig, target: Path, step: int | None = None) -> Path:
    """Write a checkpoint of a run as `checkpoint export` does."""
    directory = storage_path(run.storage) / run.name
    info = find_checkpoint(directory, step)
    assert info.manifest is not None
    tokenizer = read_tokenizer(directory / TOKENIZER_NAME)
    return export_model(
        target,
        trained_model(info.manifest),
        CheckpointReader(info.directory, info.manifest).whole,
        tokenizer=read_sentencepiece(tokenizer.model, "tokenizer"),
        sequence_length=run.data.seq_len,
    ).directory
