"""How well a trained model predicts text: of a dataset by source, of any text, of continuations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.batches import to_device
from cluster.inference import LoadedModel, check_tokenizer, require_text_model
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetError
from data_pipeline.sequences import ValidationSequences
from data_pipeline.stream import TokenStream
from data_pipeline.tokenizer import Tokenizer
from llm.errors import ModelError
from llm.metrics.language import NOTHING, TokenSums, token_sums
from llm.scoring import (
    TargetScores,
    continuation_passage,
    score_passages,
    score_targets,
    sliding_windows,
    window_passages,
)

_ROWS = 16


def evaluate_dataset(loaded: LoadedModel, dataset_path: str, *, answers_only: bool | None = None) -> dict[str, Any]:
    """How well the validation split of a dataset is predicted, in the rows of training; every token counts once.

    Args:
        loaded: The model.
        dataset_path: The dataset.
        answers_only: Score the answers of its conversations alone. None: if the run learned nothing else, and the
            dataset holds conversations.

    Returns:
        The figures of `TokenSums` over all sources, without bytes where answers alone are scored; total_tokens (of the
        split: the first of each document, or without `document_mask` of the split, is predicted from nothing and so
        not scored); answers_only; and in `sources` the figures of each source, with its name in `source`. Sums of the
        sources add up to those of the whole.

    Raises:
        DatasetError: The dataset was built with another tokenizer, has no validation split, or has no answers.
    """
    require_text_model(loaded)
    dataset = Dataset.open(dataset_path)
    check_tokenizer(loaded, dataset)
    if answers_only is None:
        answers_only = loaded.answers_only and dataset.chat_template is not None
    sequences = ValidationSequences(
        dataset,
        loaded.data.seq_len,
        loaded.data.document_mask,
        answers_only=answers_only,
        packing=loaded.data.packing,
    )
    if len(sequences) == 0:
        raise DatasetError(
            f"dataset {dataset.directory} has no validation documents. Build it with validation_fraction above 0."
        )
    names = [source.name for source in dataset.manifest.sources]
    sums = _sums_by_source(loaded, sequences, names)
    told = _without_bytes if answers_only else dict
    return {
        **told(_figures(sum(sums, NOTHING))),
        "total_tokens": sequences.stream.tokens,
        "answers_only": answers_only,
        "sources": [{"source": name, **told(each.figures())} for name, each in zip(names, sums, strict=True)],
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
        positions = (sequences.starts(indices)[:, None] + columns)[rows.loss_weights != 0]
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
    require_text_model(loaded)
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


def _without_bytes(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes are those of whole documents, and so say nothing of answers."""
    return {key: value for key, value in figures.items() if key not in ("bytes", "bits_per_byte")}


def _device(loaded: LoadedModel) -> str:
    return str(next(loaded.model.parameters()).device)
