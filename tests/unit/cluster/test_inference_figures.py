"""What `evaluate` reports of text and of datasets: sums that add up, against slow ways to the same numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import json_lines

from cluster.config import RunConfig
from cluster.evaluation.language import evaluate_dataset, evaluate_text, score_continuations
from cluster.inference import LoadedModel, load_run
from data_pipeline.build import build_dataset
from data_pipeline.config import DataBuildConfig, TokenizerConfig
from data_pipeline.dataset import Dataset
from data_pipeline.sequences import ValidationSequences
from llm.errors import ScoringError

TOLERANCE = 1e-5
"""Relative; fp32 losses of the same tokens, computed in batches of another shape."""
TEXT = "She was the youngest of the two daughters; naïve and „handsome“, with a happy disposition.\n" * 3


@pytest.fixture(scope="module")
def loaded(trained: RunConfig) -> LoadedModel:
    return load_run(f"{trained.storage}/{trained.name}")


@pytest.fixture(scope="module")
def two_sources(trained: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Documents of two sources and one without a word, longer and shorter than a row."""
    directory = tmp_path_factory.mktemp("two")
    first = [f"Emma said {number} things, and Mr. Knightley none. " * (1 + number % 5) for number in range(12)]
    second = [f"第{number}回　甄士隐梦幻识通灵" for number in range(9)]
    output = directory / "dataset"
    build_dataset(
        DataBuildConfig(
            name="two",
            output=str(output),
            sources=(json_lines(directory / "emma.jsonl", first), json_lines(directory / "dream.jsonl", second)),
            tokenizer=TokenizerConfig(path=f"{trained.storage}/{trained.name}/tokenizer.model"),
            validation_fraction=0.5,
        )
    )
    return Dataset.open(output)


def slow_sums(loaded: LoadedModel, dataset: Dataset) -> dict[str, list[tuple[float, int]]]:
    """Loss and rank of every scored token by the name of its source, a row and a document at a time."""
    mask = loaded.data.document_mask
    sequences = ValidationSequences(dataset, loaded.data.seq_len, mask)
    found: dict[str, list[tuple[float, int]]] = {source.name: [] for source in dataset.manifest.sources}
    for row in range(len(sequences)):
        batch = sequences.read([row])
        documents = torch.from_numpy(batch.document_ids) if mask else None
        with torch.no_grad():
            logits_TV = loaded.model.logits(torch.from_numpy(batch.tokens), documents)[0].double()
        for column in np.flatnonzero(batch.loss_weights[0]).tolist():
            target = int(batch.targets[0, column])
            (place,) = sequences.stream.documents_at(row * loaded.data.seq_len + column + 1)
            loss = -torch.log_softmax(logits_TV[column], 0)[target]
            found[place.source].append((float(loss), int((logits_TV[column] > logits_TV[column, target]).sum())))
    return found


@pytest.mark.parametrize("document_mask", [True, False])
def test_figures_of_sources_are_those_of_their_tokens(
    loaded: LoadedModel, two_sources: Dataset, document_mask: bool
) -> None:
    loaded = replace(loaded, data=replace(loaded.data, document_mask=document_mask))
    figures = evaluate_dataset(loaded, str(two_sources.directory))
    slow = slow_sums(loaded, two_sources)
    assert [each["source"] for each in figures["sources"]] == ["emma", "dream"]
    for each in figures["sources"]:
        tokens = slow[each["source"]]
        assert each["tokens"] == len(tokens) > 0
        assert each["loss"] == pytest.approx(np.mean([loss for loss, _ in tokens]), rel=TOLERANCE)
        assert each["top1_accuracy"] == pytest.approx(np.mean([rank < 1 for _, rank in tokens]))
        assert each["top5_accuracy"] == pytest.approx(np.mean([rank < 5 for _, rank in tokens]))


def test_sources_add_up_to_the_total_and_to_the_bytes_of_the_split(loaded: LoadedModel, two_sources: Dataset) -> None:
    figures = evaluate_dataset(loaded, str(two_sources.directory))
    split = two_sources.manifest.splits["validation"]
    assert figures["bytes"] == sum(each["bytes"] for each in figures["sources"]) == split.utf8_bytes
    assert figures["tokens"] == sum(each["tokens"] for each in figures["sources"]) == split.tokens - split.documents
    assert figures["total_tokens"] == split.tokens
    nats = math.fsum(each["loss"] * each["tokens"] for each in figures["sources"])
    assert figures["loss"] * figures["tokens"] == pytest.approx(nats, rel=1e-12)
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / split.utf8_bytes, rel=1e-12)


def test_loss_of_a_dataset_is_the_one_that_the_model_computes(loaded: LoadedModel, two_sources: Dataset) -> None:
    """The fused loss of training over the same rows, which told the figure before there were any others."""
    sequences = ValidationSequences(two_sources, loaded.data.seq_len, loaded.data.document_mask)
    batch = sequences.read(np.arange(len(sequences)))
    tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
    weights, documents = torch.from_numpy(batch.loss_weights), torch.from_numpy(batch.document_ids)
    with torch.no_grad():
        sums = loaded.model(tokens, targets, weights, documents)
    expected = sums.loss_sum.item() / sums.weight_sum.item()
    assert evaluate_dataset(loaded, str(two_sources.directory))["loss"] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("stride", [None, 32, 7, 1])
def test_text_is_scored_in_windows_of_the_length_trained_with(loaded: LoadedModel, stride: int | None) -> None:
    tokens = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(TEXT).tolist(), loaded.tokenizer.eos_id]
    length, step = loaded.data.seq_len, stride or loaded.data.seq_len
    losses = []
    for target in range(1, len(tokens)):
        start = 0 if target <= length else -(-(target - length) // step) * step
        with torch.no_grad():
            logits_V = loaded.model.logits(torch.tensor([tokens[start:target]]))[0, -1]
        losses.append(-torch.log_softmax(logits_V.double(), 0)[tokens[target]].item())
    figures = evaluate_text(loaded, TEXT, stride)
    assert len(tokens) > 4 * length
    assert (figures["tokens"], figures["total_tokens"]) == (len(tokens) - 1, len(tokens))
    assert (figures["context_tokens"], figures["stride_tokens"]) == (length, step)
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=TOLERANCE)
    assert figures["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=10 * TOLERANCE)
    assert figures["bytes"] == len(TEXT.encode()) > len(TEXT)


def test_stride_is_refused_when_it_is_longer_than_a_window(loaded: LoadedModel) -> None:
    with pytest.raises(ScoringError, match="Use a stride of 1 to 32"):
        evaluate_text(loaded, TEXT, 33)


def test_context_loses_its_beginning_when_the_model_has_no_room_for_it(loaded: LoadedModel) -> None:
    ids = loaded.tokenizer.encode(TEXT).tolist()
    assert loaded.context_tokens == loaded.data.seq_len == 32
    whole, cut = score_continuations(loaded, [(ids[:50], ids[50:60]), (ids[27:50], ids[50:60])])
    assert whole.log_probability == pytest.approx(cut.log_probability, rel=TOLERANCE)
    assert len(whole.losses) == 10
