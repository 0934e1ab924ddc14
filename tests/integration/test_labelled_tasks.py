"""Tasks that learn labels: the laws hold for them as for language models, and their measures are scikit-learn's."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attempts import attempt_alone, kill_attempt, record_of
from gloo import run_ranks
from labelled_runs import LABELS, build_labelled, labelled_run, sentences_of
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error, r2_score
from tiny import SilentLink, begin, no_tracking, tiny_run

from cluster.attempt import Surroundings, run_attempt
from cluster.branch import plan_branch
from cluster.config import RunConfig
from cluster.engines.builders import deepspeed_engine
from cluster.errors import RunRefusedError
from cluster.inference import load_run
from cluster.initial_weights import check_initial_weights
from cluster.record.logs import read_lines
from cluster.resolution import open_plan
from cluster.topology import Topology
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetError
from data_pipeline.examples import Examples
from llm.heads import HEADS

FP32_LOSS_TOLERANCE = 1e-5  # Resume law: relative, over the next 20 steps, any topology
KINDS = ("class", "classes", "number", "token_class")
EMMA = Path(str(importlib.resources.files("data_pipeline.sample") / "emma.txt.gz"))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    sentences = sentences_of(EMMA, 130)
    return {kind: build_labelled(tmp_path_factory.mktemp(kind), kind, sentences) for kind in KINDS}


def on_ranks(topology: Topology, config: RunConfig) -> None:
    run_attempt(
        config,
        topology,
        Surroundings(
            build_engine=deepspeed_engine, zero_stage=config.zero.stage, link=SilentLink(), tracking=no_tracking()
        ),
    )


def evaluations(config: RunConfig) -> list[dict[str, Any]]:
    rows = read_lines(Path(config.storage) / config.name / "metrics.jsonl")
    return [
        {key: row[key] for key in row if key == "step" or key.startswith("eval/")}
        for row in rows
        if row["kind"] == "eval"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_run_killed_between_checkpoints_goes_on_bit_for_bit(
    kind: str, datasets: dict[str, Path], tmp_path: Path
) -> None:
    undisturbed = labelled_run(tmp_path / "undisturbed", datasets[kind], kind)
    attempt_alone(undisturbed)
    killed = labelled_run(tmp_path / "killed", datasets[kind], kind)
    kill_attempt(killed, 7)
    attempt_alone(killed)
    assert record_of(killed) == record_of(undisturbed)
    assert [row["step"] for row in evaluations(killed)] == [6, 12]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("class", 3),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("number", 1), ("token_class", 2), ("classes", 0))),
    ],
)
def test_other_worlds_and_stages_follow_the_same_curve(
    kind: str, stage: int, datasets: dict[str, Path], tmp_path: Path
) -> None:
    alone = labelled_run(tmp_path / "alone", datasets[kind], kind, train__micro_batch_size=3)
    attempt_alone(alone)
    wanted = [row for row in record_of(alone) if row["kind"] == "train"]
    for world_size in (2, 3):
        config = labelled_run(tmp_path / f"world-{world_size}", datasets[kind], kind)
        config = replace(config, zero=replace(config.zero, stage=stage))  # type: ignore[arg-type]
        begin(config)
        run_ranks(on_ranks, world_size, config)
        found = [row for row in record_of(config) if row["kind"] == "train"]
        assert [row["train/tokens"] for row in found] == [row["train/tokens"] for row in wanted]
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=FP32_LOSS_TOLERANCE)
        for mine, theirs in zip(evaluations(config), evaluations(alone), strict=True):
            assert mine["eval/loss"] == pytest.approx(theirs["eval/loss"], rel=1e-4)  # after 12 updates


def test_attention_drops_the_same_whatever_rows_stand_beside(datasets: dict[str, Path], tmp_path: Path) -> None:
    curves = []
    for rows in (1, 6):
        config = labelled_run(
            tmp_path / str(rows),
            datasets["class"],
            "class",
            train__max_steps=4,
            train__micro_batch_size=rows,
            model__attention_dropout=0.3,
        )
        attempt_alone(config)
        curves.append([row["train/loss"] for row in record_of(config) if row["kind"] == "train"])
    assert curves[0] == pytest.approx(curves[1], rel=FP32_LOSS_TOLERANCE)


def predictions(config: RunConfig, dataset: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the last checkpoint says of each validation document by itself, and what is true."""
    loaded = load_run(str(Path(config.storage) / config.name))
    examples = Examples(Dataset.open(dataset), "validation", config.data.seq_len)
    said, true = [], []
    for number in range(len(examples)):
        batch = examples.read([number])
        with torch.no_grad():
            outputs = loaded.model(torch.from_numpy(batch.tokens))
        stands = batch.loss_weights[0] > 0
        head = loaded.model.config.head
        assert head is not None
        said.append(HEADS[head.predicts].predictions(outputs[0][torch.from_numpy(stands)]).numpy())
        true.append(batch.targets[0][stands])
    return np.concatenate(said), np.concatenate(true)


@pytest.mark.parametrize(
    ("kind", "world_size"),
    [
        ("class", 1),
        ("number", 2),
        ("token_class", 3),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("class", 2),
                ("class", 3),
                ("number", 1),
                ("number", 3),
                ("token_class", 1),
                ("token_class", 2),
            )
        ),
    ],
)
def test_measures_are_those_of_scikit_learn_on_any_number_of_workers(
    kind: str, world_size: int, datasets: dict[str, Path], tmp_path: Path
) -> None:
    config = labelled_run(tmp_path, datasets[kind], kind, train__max_steps=6)
    if world_size == 1:
        attempt_alone(config)
    else:
        begin(config)
        run_ranks(on_ranks, world_size, config)
    said, true = predictions(config, datasets[kind])
    assert len(Examples(Dataset.open(datasets[kind]), "validation", 48)) % world_size or world_size == 1
    (last,) = evaluations(config)
    if kind == "number":
        assert last["eval/mse"] == pytest.approx(mean_squared_error(true, said[:, 0]), rel=1e-5)
        assert last["eval/r2"] == pytest.approx(r2_score(true, said[:, 0]), rel=1e-5, abs=1e-6)
    else:
        assert last["eval/accuracy"] == accuracy_score(true, said.argmax(axis=1))
        if kind == "class":
            assert last["eval/f1_macro"] == pytest.approx(f1_score(true, said.argmax(axis=1), average="macro"))


def test_run_that_learns_labels_writes_no_text(datasets: dict[str, Path], tmp_path: Path) -> None:
    config = labelled_run(tmp_path, datasets["class"], "class", train__max_steps=6)
    attempt_alone(config)
    assert [row for row in record_of(config) if row["kind"] == "sample"] == []


def test_measures_of_the_last_evaluation_are_kept_with_intervals(datasets: dict[str, Path], tmp_path: Path) -> None:
    config = labelled_run(tmp_path, datasets["class"], "class")
    attempt_alone(config)
    measured = json.loads((tmp_path / "tiny" / "measures" / "sentences.json").read_text())
    assert (measured["task"], measured["step"], measured["split"]) == ("sequence_classification", 12, "validation")
    low, high = measured["intervals"]["accuracy"]
    assert low <= measured["headline"]["accuracy"] <= high


def test_trunk_of_a_language_model_carries_over_and_the_head_is_new(datasets: dict[str, Path], tmp_path: Path) -> None:
    trunk = tiny_run(tmp_path / "trunk", datasets["class"])
    attempt_alone(trunk)
    source = tmp_path / "trunk" / "tiny"
    config = replace(
        labelled_run(tmp_path / "tuned", datasets["class"], "class", train__max_steps=1, optimizer__learning_rate=1e-9),
        initialize_from=str(source),
    )
    attempt_alone(config)
    before = dict(load_run(str(source)).model.named_parameters())
    after = dict(load_run(str(tmp_path / "tuned" / "tiny")).model.named_parameters())
    assert set(after) - set(before) == {"score.weight"}
    for name in set(before) & set(after):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert after["score.weight"].std() > 0


def test_language_model_does_not_begin_with_a_trunk_that_has_no_output_for_text(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    labelled = labelled_run(
        tmp_path / "labelled", datasets["class"], "class", train__max_steps=1, model__tie_word_embeddings=False
    )
    attempt_alone(labelled)
    config = tiny_run(
        tmp_path / "text",
        datasets["class"],
        initialize_from=str(tmp_path / "labelled" / "tiny"),
        model__tie_word_embeddings=False,
    )
    with pytest.raises(RunRefusedError, match=r"trained to label and has no weights of an output for text"):
        check_initial_weights(config, open_plan(config), {})


def test_head_is_kept_where_the_weights_learned_the_same_labels(datasets: dict[str, Path], tmp_path: Path) -> None:
    first = labelled_run(tmp_path / "first", datasets["class"], "class")
    attempt_alone(first)
    source = tmp_path / "first" / "tiny"
    config = replace(
        labelled_run(tmp_path / "on", datasets["class"], "class", train__max_steps=1, optimizer__learning_rate=1e-9),
        initialize_from=str(source),
    )
    link = attempt_alone(config)
    (started,) = [each for each in link.messages if each.get("event") == "started"]
    assert started["initialized_from"]["head"] == "kept"
    before, after = (
        dict(load_run(str(place)).model.named_parameters()) for place in (source, tmp_path / "on" / "tiny")
    )
    torch.testing.assert_close(after["score.weight"], before["score.weight"], rtol=0, atol=1e-6)


def test_training_goes_on_where_its_predictions_cannot_be_measured(
    datasets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room for a matrix")

    monkeypatch.setattr("cluster.evaluation.labelled.measure", fail)
    config = labelled_run(tmp_path, datasets["class"], "class", train__max_steps=6)
    attempt_alone(config)
    (last,) = evaluations(config)
    assert set(last) >= {"eval/loss"}
    assert "eval/accuracy" not in last
    assert "could not be measured: no room for a matrix" in caplog.text


def test_dataset_of_another_kind_of_labels_is_refused_with_the_task_that_fits(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    config = replace(labelled_run(tmp_path, datasets["number"], "number"), task="sequence_classification")
    with pytest.raises(RunRefusedError, match=r"are of kind number. Use regression, or build the dataset with"):
        attempt_alone(config)


@pytest.mark.parametrize("names", [("long", "short"), ("short", "long", "longer")])
def test_branch_is_refused_when_the_labels_of_its_data_mean_something_else(
    names: tuple[str, ...], datasets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = labelled_run(tmp_path, datasets["class"], "class", train__max_steps=4)
    attempt_alone(parent)
    monkeypatch.setitem(LABELS, "class", replace(LABELS["class"], names=names))
    other = build_labelled(tmp_path / "other", "class", sentences_of(EMMA, 130))
    child = replace(
        parent,
        name="child",
        data=replace(parent.data, dataset=str(other)),
        train=replace(parent.train, max_steps=8),
    )
    with pytest.raises(RunRefusedError, match=r"learned class \['short', 'long'\]: the outputs of its head mean"):
        plan_branch(tmp_path / "tiny", 4, child)


def test_dataset_without_labels_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no labels, and this task learns them"):
        attempt_alone(labelled_run(tmp_path, dataset, "class"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__packing": "stream"},
            "data.packing stream: this task takes examples. Change data.packing.",
        ),
        ({"data__document_mask": False}, "each document is a sequence by itself, so there is nothing to mask"),
        ({"data__class_weights": "balanced"}, "task regression: only one class of several can be balanced"),
        ({"train__z_loss_coefficient": 0.1}, "it belongs to the logits of a language model"),
        ({"train__label_smoothing": 0.1}, "only one class of several can be smoothed"),
        ({"evaluation__prompts": ("a",)}, "a model that learns labels writes no text"),
        ({"evaluation__beside_training": True}, "labels are evaluated in the training alone"),
    ],
)
def test_what_does_not_go_with_a_task_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_run(tmp_path, tmp_path, "number", **changes)
