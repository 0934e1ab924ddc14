"""Predictions for labelled documents, gathered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.engines.protocol import MicroBatch
from cluster.evaluation.in_loop import Evaluated
from cluster.evaluation.labelled import predict
from cluster.evaluation.measures import write_measures
from cluster.topology import Topology
from data_pipeline.examples import Examples
from data_pipeline.label_config import LabelsConfig
from llm.head_config import HeadConfig
from llm.metrics.measured import from_json
from tests.unit.data_pipeline.labelled import build_labelled, rated

NUMBER = HeadConfig(predicts="number", outputs=1)


class CountsTokens:
    """Says of every position how many tokens stand up to there; or something that is not a number."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.rows = 0

    def outputs(self, batch: MicroBatch) -> torch.Tensor:
        rows, length = batch.tokens.shape
        self.rows += rows
        said = torch.arange(1.0, length + 1).expand(rows, length)[..., None].clone()
        return said * float("nan") if self.broken else said


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    directory = tmp_path_factory.mktemp("rated")
    return Examples(build_labelled(directory, LabelsConfig(kind="number", field="score")), "validation", 32)


def run(model: Any, examples: Examples, **options: Any) -> Any:
    return predict(
        model,
        NUMBER,
        examples,
        topology=Topology(),
        collectives=Collectives(),
        micro_batch_size=options.get("rows", 4),
        max_examples=options.get("most"),
    )


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_each_document_is_asked_about_once_in_its_order(rows: int, examples: Examples) -> None:
    found = run(CountsTokens(), examples, rows=rows)
    assert found.said.documents.tolist() == list(range(len(examples)))
    assert found.said.values[:, 0].tolist() == examples.lengths.tolist()
    batch = examples.read(np.arange(len(examples)))
    true = batch.targets[batch.loss_weights > 0]
    assert found.said.labels.tolist() == true.tolist()
    assert found.loss == pytest.approx(float(((examples.lengths - true) ** 2).mean()), rel=1e-6)


def test_only_the_first_documents_are_asked_about_where_so_many_were_wanted(examples: Examples) -> None:
    model = CountsTokens()
    found = run(model, examples, most=3, rows=2)
    assert found.said.documents.tolist() == [0, 1, 2]
    assert model.rows == 4  # the last pass holds a padding row


def test_measures_are_left_out_where_a_prediction_is_not_a_number(examples: Examples) -> None:
    assert run(CountsTokens(broken=True), examples).measured("regression", ()) is None
    assert run(CountsTokens(), examples).measured("regression", ()) is not None


class SaysTheFirst:
    """Finds the first of two classes likelier everywhere."""

    def outputs(self, batch: MicroBatch) -> torch.Tensor:
        return torch.tensor([1.0, 0.0]).expand(*batch.tokens.shape, 2).clone()


def test_documents_none_of_whose_words_has_a_label_are_not_measured(tmp_path: Path) -> None:
    lines = [{**line, "tags": [None] * len(line["words"])} if n % 2 else line for n, line in enumerate(rated())]
    dataset = build_labelled(tmp_path, LabelsConfig(kind="token_class", field="tags"), lines)
    examples = Examples(dataset, "validation", 32)
    labelled = int((examples.read(np.arange(len(examples))).loss_weights.sum(axis=1) > 0).sum())
    found = predict(
        SaysTheFirst(),  # type: ignore[arg-type]
        HeadConfig(predicts="class", outputs=2, bias=True),
        examples,
        topology=Topology(),
        collectives=Collectives(),
        micro_batch_size=4,
        max_examples=None,
    )
    assert found is not None
    measured = found.measured("token_classification", dataset.labels.names)
    assert measured is not None
    assert 0 < measured.examples == labelled < len(examples)


def test_measures_are_written_and_read_back(examples: Examples, tmp_path: Path) -> None:
    measured = run(CountsTokens(), examples).measured("regression", (), resamples=20)
    write_measures(tmp_path, Evaluated({"name": "a/b"}, measured), 7)
    path = tmp_path / "measures" / "a%2Fb.json"
    again = from_json(json.loads(path.read_text()), str(path))
    assert again == measured.about(dataset="a/b", split="validation", step=7)


def test_training_goes_on_where_measures_cannot_be_written(
    examples: Examples, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured = run(CountsTokens(), examples).measured("regression", ())
    (tmp_path / "measures").write_text("in the way")
    write_measures(tmp_path, Evaluated({"name": "a"}, measured), 7)
    assert "measures of step 7 are not in" in caplog.text
