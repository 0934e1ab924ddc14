"""Labelled datasets out of real data, and small runs over them."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny import tiny_run

from cluster.config import RunConfig
from data_pipeline.build import build_dataset
from data_pipeline.config import DataBuildConfig, SourceConfig, TokenizerConfig, TokenizerTrainingConfig
from data_pipeline.label_config import LabelsConfig

TASKS = {
    "class": "sequence_classification",
    "classes": "multi_label_classification",
    "number": "regression",
    "token_class": "token_classification",
}
TRAITS = {"question": "?", "speech": '"', "pause": ";"}
LABELS = {
    "class": LabelsConfig(kind="class", field="side", names=("short", "long")),
    "classes": LabelsConfig(kind="classes", field="traits"),
    "number": LabelsConfig(kind="number", field="commas"),
    "token_class": LabelsConfig(kind="token_class", field="tags"),
}


def build_labelled(directory: Path, kind: str, sentences: list[str]) -> Path:
    """A dataset of sentences, labelled by what can be seen in them."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "lines.jsonl"
    lines = []
    for sentence in sentences:
        words = sentence.split()
        lines.append(
            {
                "text": words if kind == "token_class" else sentence,
                "tags": ["NAME" if word[0].isupper() else "OTHER" for word in words],
                "side": "long" if len(words) > 12 else "short",
                "traits": [
                    trait for trait, mark in (("question", "?"), ("speech", '"'), ("pause", ";")) if mark in sentence
                ],
                "commas": sentence.count(",") / 2,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    output = directory / "dataset"
    build_dataset(
        DataBuildConfig(
            name="sentences",
            output=str(output),
            sources=(SourceConfig(name="emma", path=str(path)),),
            tokenizer=TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=400)),
            validation_fraction=0.2,
            labels=LABELS[kind],
        )
    )
    return output


def sentences_of(text: Path, count: int) -> list[str]:
    """The first sentences of a novel."""
    content = gzip.decompress(text.read_bytes()).decode() if text.suffix == ".gz" else text.read_text(encoding="utf-8")
    found = [" ".join(part.split()) for part in content[5_000:].replace("?", "?.").split(".")]
    return [sentence for sentence in found if len(sentence.split()) > 2][:count]


def labelled_run(storage: Path, dataset: Path, kind: str, **changes: Any) -> RunConfig:
    """A run of a few seconds that learns the labels of a dataset."""
    config = tiny_run(storage, dataset)
    config = replace(
        config,
        task=TASKS[kind],
        data=replace(config.data, packing="examples", seq_len=48),
        evaluation=replace(config.evaluation, max_sequences=None),
    )
    for key, value in changes.items():
        part, field = key.split("__")
        config = replace(config, **{part: replace(getattr(config, part), **{field: value})})
    return config
