"""Small labelled corpora and the datasets of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.build import build_dataset
from data_pipeline.config import (
    DataBuildConfig,
    SourceConfig,
    TokenizerConfig,
    TokenizerTrainingConfig,
)
from data_pipeline.dataset import Dataset
from data_pipeline.label_config import LabelsConfig

WORDS = ("good", "bad", "film", "book", "long", "short", "a", "the", "very", "plot")


def rated(count: int = 60) -> list[dict[str, Any]]:
    """Lines with every kind of label; texts are of different lengths and all differ."""
    lines = []
    for number in range(count):
        words = [WORDS[(number * 7 + place * 3) % len(WORDS)] for place in range(3 + number % 11)] + [f"n{number}"]
        lines.append(
            {
                "text": " ".join(words),
                "words": words,
                "tags": ["ADJ" if word in WORDS[:2] else None if word == "a" else "X" for word in words],
                "class": ("low", "middle", "high")[number % 3],
                "classes": ["even"] * (number % 2 == 0) + ["third"] * (number % 3 == 0),
                "score": number / 10 - 3,
            }
        )
    return lines


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def build_labelled(
    directory: Path, labels: LabelsConfig | None, lines: Sequence[Mapping[str, Any]] | None = None, **changes: Any
) -> Dataset:
    """A dataset of lines, labelled as asked."""
    path = write_lines(directory / "lines.jsonl", rated() if lines is None else lines)
    text_field = "words" if labels is not None and labels.kind == "token_class" else "text"
    config = DataBuildConfig(
        **{
            "name": "rated",
            "output": str(directory / "dataset"),
            "sources": (SourceConfig(name="lines", path=str(path), text_field=text_field),),
            "tokenizer": TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=300)),
            "validation_fraction": 0.2,
            "labels": labels,
            **changes,
        }
    )
    build_dataset(config)
    return Dataset.open(config.output)


KINDS = {
    "class": LabelsConfig(kind="class", field="class"),
    "classes": LabelsConfig(kind="classes", field="classes"),
    "number": LabelsConfig(kind="number", field="score"),
    "token_class": LabelsConfig(kind="token_class", field="tags"),
}
