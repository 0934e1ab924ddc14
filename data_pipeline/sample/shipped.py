"""Data configs of the shipped samples, and their datasets, built on first use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.config import (
    CleaningConfig,
    DataBuildConfig,
    SourceConfig,
    TokenizerConfig,
    TokenizerTrainingConfig,
)
from data_pipeline.errors import DatasetError

if TYPE_CHECKING:
    from data_pipeline.dataset import Dataset

SAMPLE_NAMES = ("sample:austen",)

DEFAULT_VOCAB_SIZE = 2048

_CHAPTER = r"^(?:VOLUME [IVX]+\s+)?(?:CHAPTER|Chapter) (?:[IVXL]+|[0-9]+)$"
_MIN_CHAPTER_CHARACTERS = 200
"""Chapters are longer; title pages are shorter and dropped."""


def sample_build_config(
    name: str, output: str | Path, vocab_size: int = DEFAULT_VOCAB_SIZE, validation_fraction: float = 0.05
) -> DataBuildConfig:
    """Returns the data config of a sample: one document per chapter, hard-wrapped lines joined.

    Args:
        name: One of SAMPLE_NAMES.
        output: Directory that becomes the dataset.
        vocab_size: Pieces of its BPE tokenizer.
        validation_fraction: Share of chapters held out.

    Raises:
        DatasetError: There is no such sample.
    """
    if name not in SAMPLE_NAMES:
        raise DatasetError(f"There is no sample {name!r}. Shipped is: {', '.join(SAMPLE_NAMES)}.")
    source = SourceConfig(name="austen", path=str(Path(__file__).parent), format="text", document_separator=_CHAPTER)
    return DataBuildConfig(
        name=name,
        output=str(output),
        sources=(source,),
        tokenizer=TokenizerConfig(train=TokenizerTrainingConfig(model_type="bpe", vocab_size=vocab_size)),
        cleaning=CleaningConfig(unwrap_lines=True, min_characters=_MIN_CHAPTER_CHARACTERS),
        validation_fraction=validation_fraction,
    )


def sample_dataset(name: str, directory: str | Path, vocab_size: int = DEFAULT_VOCAB_SIZE) -> Dataset:
    """Opens a sample's dataset, building it where it is not there yet.

    Args:
        name: One of SAMPLE_NAMES.
        directory: Where the dataset is, or will be.
        vocab_size: Pieces of its BPE tokenizer.
    """
    from data_pipeline.build import build_dataset
    from data_pipeline.dataset import Dataset

    build_dataset(sample_build_config(name, directory, vocab_size))
    return Dataset.open(directory)
