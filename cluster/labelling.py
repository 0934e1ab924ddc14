"""What a trained model says of texts: classes, labels, numbers, or a class for each word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cluster.collectives import Collectives
from cluster.errors import RunRefusedError
from cluster.evaluation.labelled import predict
from cluster.evaluation.task import PlainModel
from cluster.inference import LoadedModel, check_tokenizer
from cluster.topology import Topology
from data_pipeline.cleaning import normalise
from data_pipeline.config import CleaningConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetError
from data_pipeline.examples import Examples
from data_pipeline.raw_document import Word
from data_pipeline.word_tokens import framed_text, framed_words
from llm.head_config import HeadConfig
from llm.heads import HEADS
from llm.metrics.intervals import RESAMPLES
from llm.metrics.measured import Measured

_ROWS = 16
_PAD = 0
LIKELY = 0.5
"""A label is said to hold above it, as it is measured."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was said of one text."""

    outcome: dict[str, Any]
    """`label` and `probabilities` by class; `labels` and `probabilities`; `value`; or `words` with `labels` and their
    `probabilities`, null for words that were cut off."""
    cut: bool
    """Whether the text was longer than what the model was trained to read, and so its end left out."""


def predict_texts(loaded: LoadedModel, texts: Sequence[str | Sequence[str]]) -> Iterator[Prediction]:
    """Predict labels of texts, in their order.

    Args:
        loaded: A model that was trained to label.
        texts: Texts; where words are labelled, lists of words.

    Raises:
        RunRefusedError: The model predicts text, not labels.
    """
    head = head_of_loaded(loaded)
    device = str(next(loaded.model.parameters()).device)
    for start in range(0, len(texts), _ROWS):
        group = [_read(loaded, text) for text in texts[start : start + _ROWS]]
        longest = max(len(ids) for ids, _, _ in group)
        tokens = torch.full((len(group), longest), _PAD, dtype=torch.int64)
        for row, (ids, _, _) in enumerate(group):
            tokens[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        with torch.inference_mode():
            outputs_BTC = loaded.model(tokens.to(device))
        values = HEADS[head.predicts].predictions(outputs_BTC).double().cpu().numpy()
        for row, (text, (_, places, cut)) in enumerate(zip(texts[start : start + _ROWS], group, strict=True)):
            yield Prediction(outcome=_outcome(loaded, text, values[row, places]), cut=cut)


def evaluate_labels(loaded: LoadedModel, dataset_path: str) -> Measured:
    """Measure a model on the validation split of a labelled dataset, with bootstrap intervals.

    Raises:
        RunRefusedError: The model predicts text, not labels.
        DatasetError: The dataset has another tokenizer, other labels, or no validation split.
    """
    head = head_of_loaded(loaded)
    dataset = Dataset.open(dataset_path)
    check_tokenizer(loaded, dataset)
    if (dataset.labels.kind, dataset.labels.names) != (loaded.label_kind, loaded.label_names):
        raise DatasetError(
            f"{dataset.directory} is labelled with {dataset.labels.kind} {list(dataset.labels.names)}, and the model "
            f"of {loaded.run_directory} learned {loaded.label_kind} {list(loaded.label_names)}: its outputs mean "
            "something else. Build the dataset with the same `labels.names`, or name another run."
        )
    found = predict(
        PlainModel(loaded.model),
        head,
        Examples(dataset, "validation", loaded.data.seq_len),
        topology=Topology(),
        collectives=Collectives(),
        micro_batch_size=_ROWS,
        max_examples=None,
    )
    sources = dataset.split("validation").document_sources()
    measured = None
    if found is not None:
        measured = found.measured(loaded.task, loaded.label_names, sources=sources, resamples=RESAMPLES)
    if measured is None:
        raise DatasetError(
            f"{dataset.directory} has no validation documents with labels. Build it with validation_fraction above 0."
        )
    return measured.about(dataset=dataset.name, split="validation", step=loaded.step)


def head_of_loaded(loaded: LoadedModel) -> HeadConfig:
    """The head of a model that predicts labels.

    Raises:
        RunRefusedError: It predicts text.
    """
    head = loaded.model.config.head
    if head is None:
        raise RunRefusedError(
            f"{loaded.run_directory} predicts text (task {loaded.task}), not labels. Use evaluate or generate, or "
            "fine-tune it with a task that learns labels."
        )
    return head


def _read(loaded: LoadedModel, text: str | Sequence[str]) -> tuple[Any, list[int], bool]:
    """Token ids of a text, cut, and the places at which the model has read what it is asked about."""
    limit = loaded.data.seq_len
    if isinstance(text, str):
        ids = framed_text(normalise(text, CleaningConfig()), loaded.tokenizer)
        return ids[:limit], [min(len(ids), limit) - 1], len(ids) > limit
    words = [Word(normalise(word, CleaningConfig())) for word in text]
    ids, ends = framed_words(words, loaded.tokenizer, "a text to predict for")
    return ids[:limit], [end for end in ends if end < limit], len(ids) > limit


def _outcome(loaded: LoadedModel, text: str | Sequence[str], values: Any) -> dict[str, Any]:
    names = loaded.label_names
    if loaded.task == "regression":
        return {"value": float(values[0, 0])}
    if loaded.task == "token_classification":
        left_out = [None] * (len(text) - len(values))
        said = [names[place] for place in values.argmax(axis=1)]
        shares = values.max(axis=1).tolist() if len(values) else []
        return {"words": list(text), "labels": [*said, *left_out], "probabilities": [*shares, *left_out]}
    probabilities = {name: float(value) for name, value in zip(names, values[0], strict=True)}
    if loaded.task == "multi_label_classification":
        return {
            "labels": [name for name, share in probabilities.items() if share > LIKELY],
            "probabilities": probabilities,
        }
    return {"label": max(probabilities, key=probabilities.__getitem__), "probabilities": probabilities}
