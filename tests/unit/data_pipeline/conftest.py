"""Small real datasets: slices of the shipped samples, built once."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import data_pipeline.sample
from data_pipeline.build import build_dataset
from data_pipeline.config import (
    CleaningConfig,
    DataBuildConfig,
    SourceConfig,
    TokenizerConfig,
    TokenizerTrainingConfig,
)
from data_pipeline.dataset import Dataset

SAMPLE_DIRECTORY = Path(data_pipeline.sample.__file__).parent
CHAPTER = r"^Chapter [0-9]+$"


@pytest.fixture(scope="session")
def novel() -> str:
    """The opening of a novel: eight chapters after the title page."""
    with gzip.open(SAMPLE_DIRECTORY / "pride_and_prejudice.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read()
    return text[: text.index("Chapter 9\n")]


@pytest.fixture(scope="session")
def make_config(novel: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DataBuildConfig]:
    """Makes a build config over the slice; keywords replace its fields."""
    text = tmp_path_factory.mktemp("text") / "novel.txt"
    text.write_text(novel, encoding="utf-8")

    def make(output: Path, **changes: object) -> DataBuildConfig:
        config = DataBuildConfig(
            name="novel",
            output=str(output),
            sources=(SourceConfig(name="novel", path=str(text), document_separator=CHAPTER),),
            tokenizer=TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=512)),
            cleaning=CleaningConfig(unwrap_lines=True, min_characters=100),
            validation_fraction=0.1,
            shard_tokens=15_000,
        )
        return dataclasses.replace(config, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def dataset(make_config: Callable[..., DataBuildConfig], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The slice as a dataset of several shards; not to be changed."""
    output = tmp_path_factory.mktemp("dataset")
    build_dataset(make_config(output))
    return Dataset.open(output)


@pytest.fixture(scope="session")
def dialogues() -> list[dict[str, Any]]:
    """Four hundred of the shipped dialogues, some of them of many turns."""
    with gzip.open(SAMPLE_DIRECTORY / "dialogues.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return sorted(lines, key=lambda line: -len(line["messages"]))[20:420]


@pytest.fixture(scope="session")
def make_chat_config(
    dialogues: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., DataBuildConfig]:
    """Makes a build config over those dialogues; keywords replace its fields."""
    lines = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    lines.write_text("".join(json.dumps(line) + "\n" for line in dialogues), encoding="utf-8")

    def make(output: Path, **changes: object) -> DataBuildConfig:
        config = DataBuildConfig(
            name="chats",
            output=str(output),
            sources=(SourceConfig(name="chats", path=str(lines), messages_field="messages"),),
            tokenizer=TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=512)),
            validation_fraction=0.1,
            shard_tokens=3_000,
        )
        return dataclasses.replace(config, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def chats(make_chat_config: Callable[..., DataBuildConfig], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The dialogues as a dataset of several shards; not to be changed."""
    output = tmp_path_factory.mktemp("chats-dataset")
    build_dataset(make_chat_config(output))
    return Dataset.open(output)
