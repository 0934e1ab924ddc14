"""Branches that are trained: they go on from their parent's state as any continuation does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt_alone, record_of
from tiny import SilentLink, tiny_run
from typer.testing import CliRunner

from cluster.branch import plan_branch
from cluster.branch_directory import create_branch
from cluster.config import RunConfig
from cluster.errors import CheckpointMismatchError
from cluster.record.wandb_view import run_config
from cluster.run_directory import RunDirectory
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.publish import seal
from launcher.cli import app
from launcher.config_file import load_run_config, resolved_yaml

STEP = 4
DECAY_BEGINS_AFTER = 8
BATCH = 6


def run_of(storage: Path, dataset: Path) -> RunConfig:
    return tiny_run(storage, dataset, schedule__name="constant", evaluation__sample_tokens=0)


@pytest.fixture(scope="module")
def parent(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run with a constant rate and checkpoints of steps 4, 8 and 12."""
    config = run_of(tmp_path_factory.mktemp("parent"), dataset)
    attempt_alone(config)
    (Path(config.storage) / config.name / "config.yaml").write_text(resolved_yaml(config))
    return config


def decaying(config: RunConfig) -> RunConfig:
    """The same run with a rate that stays constant up to step 8 and falls to the last one, 12."""
    return replace(config, schedule=replace(config.schedule, name="wsd", decay_steps=4))


def branch_off(parent: RunConfig, child: RunConfig, step: int = STEP) -> RunConfig:
    """Make a branch; the configuration is read back from its file, as `pretrain` reads it."""
    branch = plan_branch(Path(parent.storage) / parent.name, step, child)
    directory = create_branch(branch, resolved_yaml(branch.config))
    return load_run_config(str(directory / "config.yaml"))


def from_step(config: RunConfig, step: int) -> list[dict[str, Any]]:
    return [row for row in record_of(config) if row["step"] >= step]


def test_branch_goes_on_bit_equal_to_a_run_with_its_schedule(parent: RunConfig, dataset: Path, tmp_path: Path) -> None:
    child = branch_off(parent, decaying(replace(parent, name="annealed", storage=str(tmp_path))))
    attempt_alone(child)
    whole = decaying(run_of(tmp_path / "whole", dataset))
    attempt_alone(whole)
    assert record_of(child) == from_step(whole, STEP + 1)
    mine, theirs = from_step(child, STEP + 1), from_step(parent, STEP + 1)
    differing = {row["step"] for row, other in zip(mine, theirs, strict=True) if row != other}
    assert differing == set(range(DECAY_BEGINS_AFTER + 1, 13))


def test_branch_goes_on_bit_equal_to_a_run_with_its_batch_sizes(
    parent: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    sizes = {
        "global_batch_size": 3 * BATCH,
        "batch_size_warmup": (
            BatchSizeStage(until_step=STEP + 2, global_batch_size=BATCH),
            BatchSizeStage(until_step=STEP + 5, global_batch_size=2 * BATCH),
        ),
    }
    child = branch_off(
        parent, replace(parent, name="larger", storage=str(tmp_path), train=replace(parent.train, **sizes))
    )
    attempt_alone(child)
    whole = run_of(tmp_path / "whole", dataset)
    whole = replace(whole, train=replace(whole.train, **sizes))
    attempt_alone(whole)
    assert record_of(child) == from_step(whole, STEP + 1)
    tokens = [row["train/tokens"] for row in record_of(child) if row["kind"] == "train"]
    assert tokens[-1] == BATCH * (6 + 2 * 3 + 3 * 3) * child.data.seq_len


def test_first_event_and_tracking_name_the_parent(parent: RunConfig, tmp_path: Path) -> None:
    child = branch_off(parent, replace(parent, name="same", storage=str(tmp_path)))
    first = attempt_alone(child).events()[0]
    theirs = RunDirectory(Path(parent.storage) / parent.name).facts()
    assert (first["event"], first["from_step"]) == ("resumed", STEP)
    assert first["branched_from"] == {"run": theirs["id"], "name": "tiny", "step": STEP}
    facts = RunDirectory(tmp_path / "same").facts()
    assert run_config(facts)["lineage"]["parent"]["wandb_id"] == theirs["wandb"]["id"]
    assert record_of(child) == from_step(parent, STEP + 1)


@pytest.fixture(scope="module")
def reseeded(parent: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[int, int]]:
    """A finished branch whose data is in another order, and the first sequence of each of its steps."""
    first_sequences: dict[int, int] = {}

    def observe(batch: Any) -> None:
        first_sequences[batch.step] = int(batch.sample_index[0])

    child = branch_off(parent, replace(parent, name="child", storage=str(tmp_path_factory.mktemp("child")), seed=7))
    attempt_alone(child, observe=observe)
    return child, first_sequences


def test_other_data_begins_at_its_first_sequence(parent: RunConfig, reseeded: tuple[RunConfig, dict[int, int]]) -> None:
    child, first_sequences = reseeded
    assert first_sequences == {step: (step - STEP - 1) * BATCH for step in range(STEP + 1, 13)}
    assert record_of(child)[0]["train/loss"] != from_step(parent, STEP + 1)[0]["train/loss"]
    assert record_of(child)[0]["train/tokens"] == from_step(parent, STEP + 1)[0]["train/tokens"]


def test_branch_with_other_data_goes_on_bit_equal_when_stopped(
    parent: RunConfig, reseeded: tuple[RunConfig, dict[int, int]], tmp_path: Path
) -> None:
    child = branch_off(parent, replace(parent, name="stopped", storage=str(tmp_path), seed=7))
    attempt_alone(child, link=SilentLink(stop_after=2))
    resumed = attempt_alone(child).events()[0]
    assert resumed["from_step"] == STEP + 2
    assert "branched_from" not in resumed
    assert record_of(child) == record_of(reseeded[0])


def test_branch_is_not_trained_when_its_state_gives_another_loss(parent: RunConfig, tmp_path: Path) -> None:
    child = branch_off(parent, replace(parent, name="spoiled", storage=str(tmp_path)))
    path = tmp_path / "spoiled" / "checkpoints" / f"step-{STEP:08d}" / "MANIFEST.json"
    document = json.loads(path.read_bytes())
    del document["checksum"]
    document["next_batch_loss"] *= 1.001
    path.write_bytes(seal(document))
    with pytest.raises(CheckpointMismatchError, match="more than the 1e-05 that rounding allows"):
        attempt_alone(child)


def test_branch_of_a_branch_goes_on_with_its_data(reseeded: tuple[RunConfig, dict[int, int]], tmp_path: Path) -> None:
    child = reseeded[0]
    grandchild = branch_off(child, replace(child, name="grandchild", storage=str(tmp_path)), step=8)
    attempt_alone(grandchild)
    assert record_of(grandchild) == from_step(child, 9)


def told(parent: RunConfig, storage: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit code of `longhaul branch`, and each of its lines."""
    runner = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "400"})
    run = str(Path(parent.storage) / parent.name)
    result = runner.invoke(app, ["branch", run, *arguments, f"storage={storage}"])
    return result.exit_code, (result.stdout or result.stderr).splitlines()


def test_command_tells_what_changed_and_how_to_go_on(parent: RunConfig, tmp_path: Path) -> None:
    overrides = ("schedule.name=wsd", "schedule.decay_steps=10")
    assert told(parent, tmp_path, "annealed", "--from", "4", *overrides) == (
        0,
        [
            f"branch    {tmp_path}/annealed, from step 4 of {parent.storage}/tiny",
            "changed   schedule.decay_steps: None -> 10",
            "          schedule.name: 'constant' -> 'wsd'",
            "data      goes on as in the parent, with sequence 24",
            "rate      of step 5: 0.00219, in the parent 0.003",
            f"train it  longhaul pretrain {tmp_path}/annealed/config.yaml",
        ],
    )


def test_command_says_so_when_nothing_changed(parent: RunConfig, tmp_path: Path) -> None:
    exit_code, lines = told(parent, tmp_path, "same", "--from", "8")
    assert exit_code == 0
    assert lines[1] == "changed   nothing: it will repeat what its parent did from step 9 on"


def test_command_says_that_other_data_begins_at_its_first_sequence(parent: RunConfig, tmp_path: Path) -> None:
    exit_code, lines = told(parent, tmp_path, "other", "--from", "8", "seed=3")
    assert exit_code == 0
    assert lines[1:4] == [
        "changed   seed: 1234 -> 3",
        "data      begins at its first sequence with step 9, since the order changed (seed)",
        "check     the loss of step 9 is not known beforehand, and so not compared with the saved one",
    ]


def test_command_names_the_usable_steps_when_there_is_no_such_checkpoint(parent: RunConfig, tmp_path: Path) -> None:
    exit_code, lines = told(parent, tmp_path, "x", "--from", "5")
    assert exit_code == 1
    assert "no usable checkpoint of step 5 (usable steps: 4, 8, 12)" in " ".join(lines)
    assert list(tmp_path.iterdir()) == []
