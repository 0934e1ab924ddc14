"""A small real dataset and runs over it, for integration tests."""

from __future__ import annotations

import gzip
import importlib.resources
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import CheckpointConfig, ResourcesConfig, RunConfig, TrainConfig, WandbConfig, ZeroConfig
from cluster.evaluation.config import EvaluationConfig
from cluster.record.wandb_mirror import TrackingSettings
from cluster.run_directory import TOKENIZER_NAME, RunDirectory
from cluster.storage.operations import StoragePath, make_directory, storage_path
from cluster.storage.transfer import copy_file
from cluster.train_loop import Regroup
from data_pipeline.build import build_dataset
from data_pipeline.config import (
    DataBuildConfig,
    DataConfig,
    SourceConfig,
    TokenizerConfig,
    TokenizerTrainingConfig,
)
from llm.config import ModelConfig, OptimizerConfig, ScheduleConfig

TEXT_BYTES = 120_000


def build_tiny_dataset(
    directory: Path, *, vocab_size: int = 400, text_bytes: int = TEXT_BYTES, validation_fraction: float = 0.2
) -> Path:
    """A dataset of the first chapters of the shipped sample."""
    shipped = importlib.resources.files("data_pipeline.sample") / "emma.txt.gz"
    source = directory / "text" / "emma.txt"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(gzip.decompress(shipped.read_bytes())[:text_bytes].rsplit(b"\n\n", 1)[0])
    output = directory / f"dataset-{vocab_size}"
    build_dataset(
        DataBuildConfig(
            name="emma",
            output=str(output),
            sources=(SourceConfig(name="emma", path=str(source), document_separator=r"^CHAPTER "),),
            tokenizer=TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=vocab_size)),
            validation_fraction=validation_fraction,
        )
    )
    return output


def build_tiny_chats(directory: Path, dataset: Path, *, lines: int = 300) -> Path:
    """A dataset of the first of the shipped dialogues, built with the tokenizer of another dataset."""
    shipped = importlib.resources.files("data_pipeline.sample") / "dialogues.jsonl.gz"
    source = directory / "dialogues.jsonl"
    source.write_bytes(b"".join(gzip.decompress(shipped.read_bytes()).splitlines(keepends=True)[:lines]))
    output = directory / "chats"
    build_dataset(
        DataBuildConfig(
            name="chats",
            output=str(output),
            sources=(SourceConfig(name="chats", path=str(source), messages_field="messages"),),
            tokenizer=TokenizerConfig(path=str(dataset / TOKENIZER_NAME)),
            validation_fraction=0.2,
        )
    )
    return output


def tiny_run(storage: Path | str, dataset: Path, **changes: Any) -> RunConfig:
    """A run of a few seconds; `changes` replace fields by dotted names with `__` for the dot."""
    config = RunConfig(
        name="tiny",
        storage=str(storage),
        data=DataConfig(dataset=str(dataset), seq_len=32),
        model=ModelConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
        ),
        train=TrainConfig(max_steps=12, global_batch_size=6, micro_batch_size=2, log_every_steps=1),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        schedule=ScheduleConfig(warmup_steps=2),
        zero=ZeroConfig(stage=2),
        resources=ResourcesConfig(workers=1),
        checkpoint=CheckpointConfig(every_steps=4, keep_last=3),
        evaluation=EvaluationConfig(every_steps=6, max_sequences=7, sample_tokens=16),
        wandb=WandbConfig(mode="disabled"),
    )
    for key, value in changes.items():
        if "__" in key:
            part, field = key.split("__")
            config = replace(config, **{part: replace(getattr(config, part), **{field: value})})
        else:
            config = replace(config, **{key: value})
    return config


def begin(config: RunConfig) -> StoragePath:
    """Create the run's directory as the driver does."""
    directory = storage_path(config.storage) / config.name
    make_directory(directory)
    RunDirectory(directory).create(config, "name: tiny\n")
    if not (directory / TOKENIZER_NAME).exists():
        copy_file(Path(config.data.entries[0].path) / TOKENIZER_NAME, directory / TOKENIZER_NAME)
    return directory


def no_tracking() -> TrackingSettings:
    """W&B off."""
    return TrackingSettings(mode="disabled", project="test", run_id="test", name="tiny")


class SilentLink:
    """A driver that listens and never asks for anything, unless told to after a step."""

    def __init__(self, stop_after: int | None = None, regroup_after: tuple[int, Regroup] | None = None) -> None:
        self.messages: list[dict[str, Any]] = []
        self._stop_after = stop_after
        self._regroup_after = regroup_after

    def post(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def stop_requested(self) -> bool:
        return self._stop_after is not None and self._steps() + 1 >= self._stop_after

    def regroup_requested(self) -> Regroup:
        step, wish = self._regroup_after or (0, "no")
        return wish if self._steps() + 1 >= step else "no"

    def _steps(self) -> int:
        return sum(1 for message in self.messages if message["type"] == "train")

    def events(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == "event"]
