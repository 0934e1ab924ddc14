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
from data_pipeline.label_config import LabelsConfig

if TYPE_CHECKING:
    from data_pipeline.dataset import Dataset

_HELD_OUT = {
    "sample:austen": 0.05,
    "sample:dialogues": 0.1,
    "sample:ratings": 0.1,
    "sample:sentiment": 0.1,
    "sample:turkish": 0.1,
}
"""Shares of documents; those of austen are chapters."""
_LABELS = {
    "sample:ratings": LabelsConfig(kind="number", field="score"),
    "sample:sentiment": LabelsConfig(kind="class", field="score", boundaries=(0.0,), names=("negative", "positive")),
    "sample:turkish": LabelsConfig(kind="token_class", field="upos"),
}
SAMPLE_NAMES = tuple(_HELD_OUT)

DEFAULT_VOCAB_SIZE = 2048

_CHAPTER = r"^(?:VOLUME [IVX]+\s+)?(?:CHAPTER|Chapter) (?:[IVXL]+|[0-9]+)$"
_MIN_CHAPTER_CHARACTERS = 200
"""Chapters are longer; title pages are shorter and dropped."""


def sample_build_config(
    name: str,
    output: str | Path,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    validation_fraction: float | None = None,
    tokenizer_path: str | Path | None = None,
) -> DataBuildConfig:
    """Returns the data config of a sample.

    Austen: one document per chapter, hard-wrapped lines joined. Dialogues: one conversation each. Ratings: English
    sentences with the mean of what people felt in them, from -4 to 4; sentiment: the same, by its sign. Turkish:
    sentences of the web with a part of speech for each word.

    Args:
        name: One of SAMPLE_NAMES.
        output: Directory that becomes the dataset.
        vocab_size: Pieces of the BPE tokenizer that is trained on it.
        validation_fraction: Share of documents held out; None takes the sample's own.
        tokenizer_path: A SentencePiece model to use instead.

    Raises:
        DatasetError: There is no such sample.
    """
    if name not in SAMPLE_NAMES:
        raise DatasetError(f"There is no sample {name!r}. Shipped is: {', '.join(SAMPLE_NAMES)}.")
    source, cleaning = _source(name, Path(__file__).parent)
    trained = TokenizerTrainingConfig(model_type="bpe", vocab_size=vocab_size)
    return DataBuildConfig(
        name=name,
        output=str(output),
        sources=(source,),
        tokenizer=TokenizerConfig(train=trained)
        if tokenizer_path is None
        else TokenizerConfig(path=str(tokenizer_path)),
        cleaning=cleaning,
        labels=_LABELS.get(name),
        validation_fraction=_HELD_OUT[name] if validation_fraction is None else validation_fraction,
    )


def _source(name: str, here: Path) -> tuple[SourceConfig, CleaningConfig]:
    if name == "sample:austen":
        source = SourceConfig(name="austen", path=str(here), format="text", document_separator=_CHAPTER)
        return source, CleaningConfig(unwrap_lines=True, min_characters=_MIN_CHAPTER_CHARACTERS)
    if name == "sample:dialogues":
        path = str(here / "dialogues.jsonl.gz")
        return SourceConfig(name="dialogues", path=path, messages_field="messages"), CleaningConfig()
    file = "turkish.conllu.gz" if name == "sample:turkish" else "ratings.jsonl.gz"
    return SourceConfig(name=name.removeprefix("sample:"), path=str(here / file)), CleaningConfig()


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
