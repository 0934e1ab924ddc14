"""Runs that begin with the weights of another: the first loss is the other's, whatever form they came in."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attempts import attempt_alone, kill_attempt, losses_of, record_of
from exports import write_export
from gloo import run_ranks
from tiny import SilentLink, begin, no_tracking, tiny_run

from cluster.attempt import Surroundings, run_attempt
from cluster.batches import to_device
from cluster.checkpoint import find_checkpoint, list_checkpoints
from cluster.checkpoint.manifest import step_directory
from cluster.config import RunConfig
from cluster.engines.builders import deepspeed_engine
from cluster.errors import RunNotFoundError, RunRefusedError
from cluster.inference import load_run
from cluster.initial_weights import INITIALIZED_FROM
from cluster.resolution import open_plan
from cluster.run_directory import RunDirectory
from data_pipeline.sequences import TrainingSequences
from data_pipeline.skip_ledger import SkipLedger
from llm.config import ModelConfig, OptimizerConfig
from llm.model_config import RopeScaling

FP32_LOSS_TOLERANCE = 1e-6  # relative: the same fp32 numbers, summed in rows of another number
RANKS_LOSS_TOLERANCE = 1e-5  # Resume law: relative, any topology
BF16_LOSS_TOLERANCE = 5e-3  # Resume law, relative: one side computes in bf16


@pytest.fixture(scope="module")
def source(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of 12 steps, with checkpoints of steps 4, 8 and 12."""
    config = tiny_run(tmp_path_factory.mktemp("source"), dataset, name="source")
    attempt_alone(config)
    return config


@pytest.fixture(scope="module")
def directory(source: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its newest checkpoint as a Hugging Face directory."""
    return write_export(source, tmp_path_factory.mktemp("exported") / "model")


def run_of(config: RunConfig) -> Path:
    return Path(config.storage) / config.name


def child(storage: Path, source: RunConfig, reference: Path | str, **changes: Any) -> RunConfig:
    """Another run of the same model over the same data that begins from somewhere; 2 steps unless told."""
    config = tiny_run(storage, Path(source.data.entries[0].path), **{"name": "child", "train__max_steps": 2, **changes})
    return replace(config, model=source.model, initialize_from=str(reference))


def loss_of_first_batch(config: RunConfig, weights: Path | str) -> float:
    """Loss of the model of a run or checkpoint on the first batch of a run, by the model alone."""
    plan = open_plan(config)
    batch = to_device(TrainingSequences(plan).read(plan.batch_indices(1, SkipLedger())), "cpu")
    with torch.inference_mode():
        sums = load_run(str(weights)).model(batch.tokens, batch.targets, batch.loss_weights, batch.document_ids)
    return sums.loss_sum.item() / sums.weight_sum.item()


@pytest.mark.parametrize("step", [8, 12, None])
def test_first_loss_is_that_of_the_checkpoint_it_begins_with(
    step: int | None, source: RunConfig, tmp_path: Path
) -> None:
    weights = run_of(source) if step is None else step_directory(run_of(source), step)
    config = child(tmp_path, source, weights)
    attempt_alone(config)
    expected = loss_of_first_batch(config, weights)
    np.testing.assert_allclose(losses_of(config)[0], expected, rtol=FP32_LOSS_TOLERANCE)
    assert abs(expected - losses_of(source)[0]) > 0.1  # random weights would be told apart


def test_first_loss_is_the_same_when_the_weights_went_through_hugging_face(
    source: RunConfig, directory: Path, tmp_path: Path
) -> None:
    config = child(tmp_path, source, directory)
    attempt_alone(config)
    expected = loss_of_first_batch(config, run_of(source))
    np.testing.assert_allclose(losses_of(config)[0], expected, rtol=FP32_LOSS_TOLERANCE)


def test_whole_curve_is_the_same_from_a_checkpoint_and_from_its_export(
    source: RunConfig, directory: Path, tmp_path: Path
) -> None:
    """Bit for bit: both hold the masters, and the optimizer is fresh."""
    curves = []
    for name, reference in (("run", run_of(source)), ("export", directory)):
        config = child(tmp_path / name, source, reference, train__max_steps=6)
        attempt_alone(config)
        curves.append(record_of(config))
    assert curves[0] == curves[1]


def test_optimizer_and_schedule_begin_at_the_first_step(source: RunConfig, tmp_path: Path) -> None:
    config = child(tmp_path, source, run_of(source), train__max_steps=4)
    attempt_alone(config)
    rates = [[row["train/learning_rate"] for row in record_of(each)[:2]] for each in (config, source)]
    assert rates[0] == rates[1]  # of a warm-up
    info = find_checkpoint(run_of(config), 4)
    assert info.manifest is not None
    assert {piece.scalars["step"] for pieces in info.manifest.pieces.values() for piece in pieces} == {4.0}


def attempt_on_ranks(topology: Any, configs: list[RunConfig]) -> None:
    for config in configs:
        run_attempt(
            config,
            topology,
            Surroundings(
                build_engine=deepspeed_engine,
                zero_stage=config.zero.stage,
                link=SilentLink(),
                tracking=no_tracking(),
            ),
        )


def test_first_loss_is_that_of_plain_torch_at_other_stages_and_world_sizes(
    source: RunConfig, directory: Path, tmp_path: Path
) -> None:
    alone = child(tmp_path / "alone", source, run_of(source), train__max_steps=3)
    attempt_alone(alone)
    configs = []
    for stage in (2, 3):
        for reference in (run_of(source), directory):
            place = tmp_path / f"{stage}-{reference.name}"
            config = child(place, source, reference, train__max_steps=3, zero__stage=stage)
            if stage == 3:
                config = replace(config, zero=replace(config.zero, parameter_persistence_threshold_elements=0))
            begin(config)
            configs.append(config)
    run_ranks(attempt_on_ranks, 3, configs)
    for config in configs:
        np.testing.assert_allclose(losses_of(config), losses_of(alone), rtol=RANKS_LOSS_TOLERANCE)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_weights_are_taken_over_whatever_optimizer_made_and_takes_them(
    optimizer: Any, source: RunConfig, tmp_path: Path
) -> None:
    config = child(tmp_path, source, run_of(source), optimizer=OptimizerConfig(name=optimizer), train__max_steps=4)
    attempt_alone(config)
    again = child(tmp_path, source, run_of(config), name="again")
    attempt_alone(again)
    for each, weights in ((config, source), (again, config)):
        expected = loss_of_first_batch(each, run_of(weights))
        np.testing.assert_allclose(losses_of(each)[0], expected, rtol=FP32_LOSS_TOLERANCE)


def test_masters_are_whole_when_the_run_computes_in_bf16(source: RunConfig, directory: Path, tmp_path: Path) -> None:
    config = child(tmp_path, source, directory, train__precision="bf16")
    attempt_alone(config)
    expected = loss_of_first_batch(config, run_of(source))
    np.testing.assert_allclose(losses_of(config)[0], expected, rtol=BF16_LOSS_TOLERANCE)


def test_a_model_with_windows_and_stretched_positions_comes_back_from_hugging_face(
    source: RunConfig, tmp_path: Path
) -> None:
    model = ModelConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        qk_norm=True,
        sliding_window=8,
        layer_types=("sliding_attention", "full_attention"),
        rope_scaling=RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=8),
        tie_word_embeddings=False,
    )
    other = replace(
        tiny_run(tmp_path, Path(source.data.entries[0].path), name="other", train__max_steps=2), model=model
    )
    attempt_alone(other)
    config = child(tmp_path, other, write_export(other, tmp_path / "exported"))
    attempt_alone(config)
    expected = loss_of_first_batch(config, run_of(other))
    np.testing.assert_allclose(losses_of(config)[0], expected, rtol=FP32_LOSS_TOLERANCE)


def test_record_says_whose_weights_the_run_began_with(source: RunConfig, tmp_path: Path) -> None:
    config = child(tmp_path, source, run_of(source))
    link = attempt_alone(config)
    (started,) = [event for event in link.events() if event["event"] == "started"]
    lineage = started[INITIALIZED_FROM]
    assert (lineage["name"], lineage["step"]) == ("source", 12)
    document = json.loads((step_directory(run_of(source), 12) / "MANIFEST.json").read_bytes())
    assert lineage["fingerprint"] == document["checksum"]
    assert RunDirectory(run_of(config)).facts()[INITIALIZED_FROM] == lineage


@pytest.mark.parametrize("form", ["run", "export"])
def test_resumed_record_is_bit_equal_when_the_source_has_gone(form: str, source: RunConfig, tmp_path: Path) -> None:
    copied = replace(source, storage=str(tmp_path))
    shutil.copytree(run_of(source), run_of(copied))
    reference = run_of(copied) if form == "run" else write_export(copied, tmp_path / "exported")
    undisturbed, config = (
        child(tmp_path / name, source, reference, train__max_steps=8) for name in ("whole", "killed")
    )
    attempt_alone(undisturbed)
    kill_attempt(config, 6, published=4)
    shutil.rmtree(reference)
    link = attempt_alone(config)
    assert [event["event"] for event in link.events() if event["event"] in ("started", "resumed")] == ["resumed"]
    assert record_of(config) == record_of(undisturbed)


def test_run_begins_again_with_the_same_weights_when_killed_before_its_first_checkpoint(
    source: RunConfig, tmp_path: Path
) -> None:
    """Its source has a newer checkpoint by then."""
    copied = replace(source, storage=str(tmp_path))
    shutil.copytree(run_of(source), run_of(copied))
    later = step_directory(run_of(copied), 12)
    later.rename(tmp_path / "later")
    undisturbed, config = (
        child(tmp_path / name, source, run_of(copied), train__max_steps=4) for name in ("whole", "killed")
    )
    attempt_alone(undisturbed)
    kill_attempt(config, 3)
    (tmp_path / "later").rename(later)
    attempt_alone(config)
    assert record_of(config) == record_of(undisturbed)
    assert RunDirectory(run_of(config)).facts()[INITIALIZED_FROM]["step"] == 8


def test_run_is_refused_when_what_it_began_with_is_gone_before_its_first_checkpoint(
    source: RunConfig, directory: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(directory, tmp_path / "model")
    config = child(tmp_path, source, copied)
    kill_attempt(config, 2)
    shutil.rmtree(copied)
    with pytest.raises(RunNotFoundError, match=r"initialize_from is .*model, which is no run"):
        attempt_alone(config)


def test_resume_is_refused_when_it_would_begin_from_elsewhere(source: RunConfig, tmp_path: Path) -> None:
    config = child(tmp_path, source, run_of(source), train__max_steps=8)
    kill_attempt(config, 6, published=4)
    with pytest.raises(RunRefusedError, match=r"initialize_from: '.*source' -> None"):
        attempt_alone(replace(config, initialize_from=None))


def test_damaged_weights_are_refused_and_their_run_is_left_alone(source: RunConfig, tmp_path: Path) -> None:
    copied = replace(source, storage=str(tmp_path))
    shutil.copytree(run_of(source), run_of(copied))
    info = list_checkpoints(run_of(copied))[-1]
    assert info.manifest is not None
    path = info.directory / info.manifest.files[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        RunRefusedError, match=r"the checkpoint to begin with is damaged: checkpoint file .* was altered"
    ):
        attempt_alone(child(tmp_path / "runs", source, run_of(copied)))
    assert list_checkpoints(run_of(copied))[-1].problem is None


def test_run_in_an_object_store_begins_from_another_one_there(source: RunConfig, bucket: str, tmp_path: Path) -> None:
    dataset = Path(source.data.entries[0].path)
    there = tiny_run(f"{bucket}/runs", dataset, name="source", train__max_steps=4)
    attempt_alone(there)
    config = child(tmp_path, source, f"{bucket}/runs/source")
    attempt_alone(config)
    expected = loss_of_first_batch(config, f"{bucket}/runs/source")
    np.testing.assert_allclose(losses_of(config)[0], expected, rtol=FP32_LOSS_TOLERANCE)
