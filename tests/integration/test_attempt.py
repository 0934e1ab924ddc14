"""Attempts without Ray: the Batch, Resume and Loss laws on one process and on real gloo ranks."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attempts import attempt_alone, kill_attempt, losses_of, record_of
from gloo import run_ranks
from older_checkpoints import held_in, separate, write
from tiny import SilentLink, begin, no_tracking, tiny_run

from cluster.attempt import Surroundings, run_attempt
from cluster.batches import RankBatch
from cluster.checkpoint import find_checkpoint, list_checkpoints
from cluster.config import RunConfig
from cluster.engines.builders import deepspeed_engine, torch_engine
from cluster.errors import CheckpointError, CheckpointMismatchError, RunRefusedError
from cluster.record.logs import read_lines
from cluster.topology import Topology
from cluster.train_loop import Regroup
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.publish import seal

FP32_LOSS_TOLERANCE = 1e-5  # Resume law: relative, over the next 20 steps, any topology


def attempt_on_ranks(topology: Topology, config: RunConfig) -> dict[int, list[int]]:
    """One attempt with DeepSpeed on this rank; sample ids by step."""
    seen: dict[int, list[int]] = {}

    def observe(batch: Any) -> None:
        seen[batch.step] = [int(index) for index in batch.sample_index if index >= 0]

    run_attempt(
        config,
        topology,
        Surroundings(
            build_engine=deepspeed_engine,
            zero_stage=config.zero.stage,
            link=SilentLink(),
            tracking=no_tracking(),
            observe=observe,
        ),
    )
    return seen


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = tiny_run(tmp_path_factory.mktemp("undisturbed"), dataset)
    attempt_alone(config)
    return config


def test_metrics_hold_each_step_once_when_undisturbed(undisturbed: RunConfig) -> None:
    rows = record_of(undisturbed)
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 13))
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [6, 12]


def test_samples_hold_each_evaluation_once_when_undisturbed(undisturbed: RunConfig) -> None:
    samples = [row for row in record_of(undisturbed) if row["kind"] == "sample"]
    assert [(row["step"], row["prompt"]) for row in samples] == [(6, ""), (12, "")]
    assert all(row["text"] for row in samples)
    assert samples[0]["text"] != samples[1]["text"]


def test_training_is_bit_equal_when_no_text_is_written(undisturbed: RunConfig, dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset, evaluation__sample_tokens=0)
    attempt_alone(config)
    assert record_of(config) == [row for row in record_of(undisturbed) if row["kind"] != "sample"]


def with_and_without_text(topology: Topology, *configs: RunConfig) -> None:
    for config in configs:
        attempt_on_ranks(topology, config)


@pytest.mark.parametrize(
    ("world_size", "stage", "precision"),
    [
        (2, 3, "fp32"),
        *(
            pytest.param(3, stage, precision, marks=pytest.mark.slow)
            for stage in (0, 1, 2, 3)
            for precision in ("fp32", "bf16")
        ),
    ],
)
def test_training_on_ranks_is_bit_equal_when_text_is_written(
    world_size: int, stage: int, precision: str, dataset: Path, tmp_path: Path
) -> None:
    configs = []
    for name, tokens in (("silent", 0), ("writing", 20)):
        config = tiny_run(
            tmp_path / name,
            dataset,
            evaluation__sample_tokens=tokens,
            evaluation__every_steps=2,
            train__max_steps=6,
            train__precision=precision,
        )
        config = replace(config, zero=replace(config.zero, stage=stage))
        config = replace(config, evaluation=replace(config.evaluation, prompts=("", "Emma was")))
        begin(config)
        configs.append(config)
    run_ranks(with_and_without_text, world_size, *configs)
    silent, writing = (record_of(config) for config in configs)
    assert silent == [row for row in writing if row["kind"] != "sample"]
    assert [row["step"] for row in writing if row["kind"] == "sample"] == [2, 2, 4, 4, 6, 6]


def test_loss_falls_when_training(undisturbed: RunConfig) -> None:
    losses = losses_of(undisturbed)
    assert losses[-1] < losses[0] - 0.2


PUBLISHING = "cluster.checkpoint.writer.CheckpointWriter._publish"
RETAINING = "cluster.checkpoint.catalog.apply_retention"
ANNOUNCING = "cluster.attempt._Attempt._on_saved"


@pytest.mark.parametrize("kill_at", [2, 5, 6, 8, 9, 10, 12, PUBLISHING, RETAINING, ANNOUNCING])
def test_resumed_record_is_bit_equal_when_killed(
    kill_at: int | str, undisturbed: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, kill_at)
    link = attempt_alone(config)
    assert record_of(config) == record_of(undisturbed)
    resumed = [event for event in link.events() if event["event"] in ("started", "resumed")]
    assert len(resumed) == 1


@pytest.mark.parametrize(
    "then_at",
    ["cluster.attempt.RecordWriter", "cluster.record.file_log.write_atomically", "cluster.attempt.clean_leftovers"],
)
def test_resumed_record_is_bit_equal_when_killed_again_while_resuming(
    then_at: str, undisturbed: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 11, published=8)
    kill_attempt(config, then_at)
    attempt_alone(config)
    assert record_of(config) == record_of(undisturbed)


def test_discarded_steps_are_kept_apart_when_resumed(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 8, published=4)
    attempt_alone(config)
    discarded = list(read_lines(tmp_path / "tiny" / "discarded.jsonl"))
    assert [(row["kind"], row["step"], row["attempt"]) for row in discarded] == [
        ("train", 5, 1),
        ("train", 6, 1),
        ("eval", 6, 1),
        ("train", 7, 1),
        ("sample", 6, 1),
    ]


def test_run_goes_on_bit_equal_when_stopped(undisturbed: RunConfig, dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    attempt_alone(config, link=SilentLink(stop_after=6))
    stopped_at = list_checkpoints(tmp_path / "tiny")[-1].step
    assert stopped_at == 6
    link = attempt_alone(config)
    assert link.events()[0]["from_step"] == stopped_at
    assert record_of(config) == record_of(undisturbed)


@pytest.mark.parametrize(("wish", "saved"), [("at_checkpoint", 8), ("now", 6)])
def test_attempt_ends_for_other_workers_where_they_can_go_on(
    wish: Regroup, saved: int, undisturbed: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, dataset)
    begin(config)
    result = run_attempt(
        config,
        Topology(),
        Surroundings(
            build_engine=torch_engine,
            zero_stage=None,
            link=SilentLink(regroup_after=(6, wish)),
            tracking=no_tracking(),
        ),
    )
    assert (result.step, result.finished, result.regroup) == (saved, False, True)
    attempt_alone(config)
    assert record_of(config) == record_of(undisturbed)


def test_newest_checkpoint_is_rejected_when_a_byte_was_flipped(
    undisturbed: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 11, published=8)
    newest = list_checkpoints(tmp_path / "tiny")[-1]
    assert newest.step == 8
    path = newest.directory / newest.manifest.files[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    link = attempt_alone(config)
    rejected, resumed = link.events()[:2]
    assert (rejected["event"], rejected["step"]) == ("checkpoint_rejected", 8)
    assert "was altered" in rejected["reason"]
    assert (resumed["event"], resumed["from_step"]) == ("resumed", 4)
    assert record_of(config) == record_of(undisturbed)


def test_newest_checkpoint_is_rejected_when_truncated(undisturbed: RunConfig, dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 11, published=8)
    newest = list_checkpoints(tmp_path / "tiny")[-1]
    path = newest.directory / newest.manifest.files[0].path
    path.write_bytes(path.read_bytes()[:-100])
    link = attempt_alone(config)
    assert link.events()[0]["event"] == "checkpoint_rejected"
    assert record_of(config) == record_of(undisturbed)


def test_train_lines_hold_what_torch_compiled_for(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = itertools.count()
    monkeypatch.setattr("cluster.attempt.compilation_seconds", lambda: next(counted) * 1e-6)
    config = tiny_run(tmp_path, dataset, train__max_steps=3)
    attempt_alone(config)
    rows = [row for row in read_lines(tmp_path / "tiny" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["time/compilation_seconds"] > 0 for row in rows] == [True] * 3


def as_an_older_version_wrote_it(config: RunConfig, step: int) -> None:
    """Give a checkpoint the older names, and a manifest without the keys that came with the newer ones."""
    directory = Path(config.storage) / config.name
    manifest = find_checkpoint(directory, step).manifest
    assert manifest is not None
    heads = config.model.num_attention_heads, config.model.key_value_heads, config.model.key_value_heads
    rows = {
        "qkv_proj": tuple(count * config.model.head_size for count in heads),
        "gate_up_proj": (config.model.intermediate_size,) * 2,
    }
    run = json.loads(json.dumps(manifest.run))
    del run["layout"]["compiled"]
    for key in ("compile", "z_loss_coefficient", "batch_size_warmup"):
        del run["config"]["train"][key]
    for key in ("num_experts", "rope_scaling", "sandwich_norm", "layer_types"):
        del run["config"]["model"][key]
    states = separate(held_in(directory, step), rows)
    write(directory, step, states, run, next_loss=manifest.next_batch_loss)


def test_training_continues_bit_for_bit_from_a_checkpoint_of_an_older_version(
    undisturbed: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 11, published=8)
    as_an_older_version_wrote_it(config, 8)
    link = attempt_alone(config)
    (resumed,) = (event for event in link.events() if event["event"] == "resumed")
    assert (resumed["from_step"], resumed["layout_changes"]) == (8, {})
    assert record_of(config) == record_of(undisturbed)


def test_checkpoint_is_rejected_when_it_gives_another_loss(
    undisturbed: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 11, published=8)
    falsify_next_loss(config, 8)
    with pytest.raises(CheckpointMismatchError, match="more than the 1e-05 that rounding allows"):
        attempt_alone(config)
    link = attempt_alone(config)
    assert next(event for event in link.events() if event["event"] == "resumed")["from_step"] == 4
    assert record_of(config) == record_of(undisturbed)


def falsify_next_loss(config: RunConfig, step: int, **layout: object) -> None:
    """Make a checkpoint claim another loss, and another layout."""
    path = Path(config.storage) / config.name / "checkpoints" / f"step-{step:08d}" / "MANIFEST.json"
    document = json.loads(path.read_bytes())
    del document["checksum"]
    document["next_batch_loss"] *= 1.001
    document["run"]["layout"] |= layout
    path.write_bytes(seal(document))


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ({"attention": "eager"}, r"\{'attention': \['eager', 'varlen'\]\}"),
        ({"compiled": True}, r"\{'compiled': \[True, False\]\}"),
        ({"experts": "eager"}, r"\{'experts': \['eager', None\]\}"),
    ],
)
def test_checkpoint_is_not_condemned_when_a_change_explains_another_loss(
    layout: dict[str, object], told: str, dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 11, published=8)
    falsify_next_loss(config, 8, **layout)
    with pytest.raises(RunRefusedError, match=f"changed since then: {told}"):
        attempt_alone(config)
    assert list_checkpoints(tmp_path / "tiny")[-1].problem is None


def test_second_checkpoint_is_not_condemned_when_it_gives_another_loss_too(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 11, published=8)
    falsify_next_loss(config, 8)
    falsify_next_loss(config, 4)
    with pytest.raises(CheckpointMismatchError):
        attempt_alone(config)
    with pytest.raises(RunRefusedError, match=r"so it was with the checkpoints of steps \[8\]"):
        attempt_alone(config)
    assert [info.problem is None for info in list_checkpoints(tmp_path / "tiny")] == [True, False]


def test_attempt_is_refused_when_all_its_checkpoints_have_vanished(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 11, published=8)
    shutil.rmtree(tmp_path / "tiny" / "checkpoints")
    with pytest.raises(RunRefusedError, match="the last at step 8, and none is there now"):
        attempt_alone(config)
    assert len(list(read_lines(tmp_path / "tiny" / "metrics.jsonl"))) > 8


def test_attempt_is_refused_when_no_checkpoint_is_whole(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 6, published=4)
    (info,) = list_checkpoints(tmp_path / "tiny")
    (info.directory / info.manifest.files[0].path).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of run .* can be used \(it has 1\)"):
        attempt_alone(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 5}, "seed: 1234 -> 5"), ({"data__seq_len": 16}, "data plan seq_len: 32 -> 16")],
)
def test_attempt_is_refused_when_the_curve_would_change(
    change: dict[str, Any], named: str, dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 6, published=4)
    with pytest.raises(RunRefusedError, match=named):
        attempt_alone(tiny_run(tmp_path, dataset, **change))


@pytest.mark.parametrize(("world_size", "micro_batch_size", "stage"), [(1, 1, 2), (1, 4, 1), (2, 1, 3), (2, 4, 2)])
def test_batches_and_losses_agree_when_world_and_micro_batch_differ(
    world_size: int, micro_batch_size: int, stage: int, dataset: Path, tmp_path: Path
) -> None:
    batch = {"train__global_batch_size": 5, "train__max_steps": 8}  # 5 divides by neither 2 nor 4
    alone = tiny_run(tmp_path / "alone", dataset, **batch)
    attempt_alone(alone)
    changed = tiny_run(tmp_path / "ranks", dataset, **batch, train__micro_batch_size=micro_batch_size)
    changed = replace(changed, zero=replace(changed.zero, stage=stage))
    begin(changed)
    seen = run_ranks(attempt_on_ranks, world_size, changed)
    for step in range(1, 9):
        together = sorted(index for rank in seen for index in rank[step])
        assert together == list(range((step - 1) * 5, step * 5))
    difference = np.abs(losses_of(changed) - losses_of(alone)) / losses_of(alone)
    assert difference.max() <= FP32_LOSS_TOLERANCE


GROWING = (BatchSizeStage(until_step=3, global_batch_size=2), BatchSizeStage(until_step=7, global_batch_size=5))
GROWING_SIZES = [2, 2, 2, 5, 5, 5, 5, 6, 6, 6, 6, 6]  # global_batch_size is 6: 5 divides by no number of ranks


def growing_run(storage: Path, dataset: Path, **changes: Any) -> RunConfig:
    return tiny_run(storage, dataset, train__batch_size_warmup=GROWING, **changes)


@pytest.fixture(scope="module")
def grown(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = growing_run(tmp_path_factory.mktemp("grown"), dataset)
    attempt_alone(config)
    return config


def test_tokens_follow_the_sizes_of_the_steps_when_batches_grow(grown: RunConfig) -> None:
    tokens = [row["train/tokens"] for row in record_of(grown) if row["kind"] == "train"]
    assert tokens == (np.cumsum(GROWING_SIZES) * grown.data.seq_len).tolist()
    positions = [info.manifest.run["data_position"] for info in list_checkpoints(Path(grown.storage) / "tiny")]
    assert positions == [2 * 3 + 5, 2 * 3 + 5 * 4 + 6, sum(GROWING_SIZES)]


@pytest.mark.parametrize(("compiled", "widths"), [(False, {1: 2, 4: 3, 8: 3}), (True, {1: 4, 4: 4, 8: 4})])
def test_small_batches_are_not_filled_up_unless_layers_are_compiled(
    compiled: bool, widths: dict[int, int], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.engines.builders.compile_blocks", lambda model: None)  # the shapes are the matter here
    seen: dict[int, int] = {}

    def observe(batch: RankBatch) -> None:
        seen[batch.step] = batch.micro_batches[0].tokens.shape[0]

    config = growing_run(tmp_path, dataset, train__max_steps=8, train__micro_batch_size=4, train__compile=compiled)
    attempt_alone(config, observe=observe)
    assert {step: seen[step] for step in widths} == widths


@pytest.mark.parametrize("kill_at", [2, 5, 7, 9, RETAINING])
def test_resumed_record_is_bit_equal_when_killed_while_batches_grow(
    kill_at: int | str, grown: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = growing_run(tmp_path, dataset)
    kill_attempt(config, kill_at)
    attempt_alone(config)
    assert record_of(config) == record_of(grown)


def test_resumed_record_is_bit_equal_when_every_step_is_saved_while_batches_grow(
    grown: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = growing_run(tmp_path, dataset, checkpoint__every_steps=1)
    for step in range(1, 9):
        attempt_alone(config, link=SilentLink(stop_after=1))
        assert list_checkpoints(tmp_path / "tiny")[-1].step == step
    attempt_alone(config)
    assert record_of(config) == record_of(grown)


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size", "stage"),
    [
        (1, 1, 1),
        (2, 1, 2),
        pytest.param(2, 2, 3, marks=pytest.mark.slow),
        pytest.param(2, 1, 0, marks=pytest.mark.slow),
    ],
)
def test_batches_and_losses_agree_on_other_topologies_when_batches_grow(
    world_size: int, micro_batch_size: int, stage: int, grown: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = growing_run(tmp_path, dataset, train__micro_batch_size=micro_batch_size)
    kill_attempt(config, 6, published=4)
    config = replace(config, zero=replace(config.zero, stage=stage))
    seen = run_ranks(attempt_on_ranks, world_size, config)
    for step in range(5, 13):
        before = sum(GROWING_SIZES[: step - 1])
        together = [index for rank in seen for index in rank[step]]
        assert together == list(range(before, before + GROWING_SIZES[step - 1]))
    difference = np.abs(losses_of(config) - losses_of(grown)) / losses_of(grown)
    assert difference.max() <= FP32_LOSS_TOLERANCE


def test_attempt_is_refused_when_the_warm_up_of_batches_changed(dataset: Path, tmp_path: Path) -> None:
    config = growing_run(tmp_path, dataset)
    kill_attempt(config, 6, published=4)
    with pytest.raises(RunRefusedError, match=r"train\.batch_size_warmup: \[{.*}\] -> \[\]"):
        attempt_alone(tiny_run(tmp_path, dataset))


def test_run_goes_on_within_tolerance_when_world_and_stage_change(
    undisturbed: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 6, published=4)
    for world_size, stage in ((2, 3), (3, 1)):
        copy = replace(config, storage=str(tmp_path / f"{world_size}-{stage}"))
        copy = replace(copy, zero=replace(copy.zero, stage=stage))
        shutil.copytree(tmp_path / "tiny", Path(copy.storage) / "tiny")
        run_ranks(attempt_on_ranks, world_size, copy)
        difference = np.abs(losses_of(copy) - losses_of(undisturbed)) / losses_of(undisturbed)
        assert difference.max() <= FP32_LOSS_TOLERANCE


def test_leftovers_of_a_dead_attempt_are_removed_when_the_next_begins(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    kill_attempt(config, 6, published=4)
    torn = tmp_path / "tiny" / "checkpoints" / "step-00000006" / "attempt-00001"
    torn.mkdir(parents=True)
    (torn / "rank-00000.safetensors").write_bytes(b"half")
    attempt_alone(config)
    assert not torn.exists()
