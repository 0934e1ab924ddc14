"""Evaluations of several datasets: each with its figures and its table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.table import Table

from cluster.inference import LoadedModel
from launcher.evaluations import of_datasets


@pytest.mark.parametrize(("mask", "whole"), [(True, "each document"), (False, "the split")])
def test_every_dataset_has_its_figures_and_its_table(
    untrained: LoadedModel, monkeypatch: pytest.MonkeyPatch, mask: bool, whole: str
) -> None:
    def figures(loaded: LoadedModel, path: str, *, answers_only: bool | None) -> dict[str, Any]:
        assert answers_only is None
        numbers = ("loss", "perplexity", "tokens", "bytes", "bits_per_byte", "top1_accuracy", "top5_accuracy")
        return {**dict.fromkeys(numbers, len(path)), "total_tokens": 9, "sources": []}

    monkeypatch.setattr("cluster.evaluation.language.evaluate_dataset", figures)
    loaded = replace(untrained, data=replace(untrained.data, document_mask=mask))
    found = of_datasets(loaded, ["one", "three"])
    assert [(each["dataset"], each["tokens"]) for each in found.facts["results"]] == [("one", 3), ("three", 5)]
    lines = [part for part in found.page if isinstance(part, str)]
    assert [line for line in lines if line.startswith("dataset")] == ["dataset     one", "dataset     three"]
    assert sum(f"the first of {whole} has none before it" in line for line in lines) == 2
    assert [isinstance(part, Table) for part in found.page].count(True) == 2
