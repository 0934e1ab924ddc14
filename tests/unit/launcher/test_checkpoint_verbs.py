"""`checkpoint verify`, `inspect` and `diff` on real checkpoints: what they say, and what a person can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cluster.checkpoint import CheckpointWriter, list_checkpoints, reject
from cluster.config import CheckpointConfig
from cluster.engines.protocol import MASTER, Fragment, FragmentState
from launcher.cli import app


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of two steps."""
    (tmp_path / "run.json").write_text("{}")
    for step in (4, 8):
        writer = CheckpointWriter(tmp_path, attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
        states = {MASTER: torch.arange(6.0), "exp_avg": torch.zeros(6)}
        writer.save(step, [FragmentState(Fragment("weight", "decay", (2, 3), 0, 6), states, {"step": 1.0})], {})
        writer.next_loss(2.0)
        writer.finish()
    return tmp_path


def _damage(run: Path, step: int) -> None:
    (info,) = (info for info in list_checkpoints(run) if info.step == step)
    assert info.manifest is not None
    path = info.directory / info.manifest.files[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _verify(run: Path) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["checkpoint", "verify", str(run)])
    return result.exit_code, result.stdout.splitlines()


def test_verify_says_good_and_nothing_else_when_all_is_whole(run: Path) -> None:
    assert _verify(run) == (0, ["step 4: good (1 file)", "step 8: good (1 file)"])


def test_verify_names_the_remedy_when_one_checkpoint_is_damaged(run: Path) -> None:
    _damage(run, 8)
    exit_code, lines = _verify(run)
    assert exit_code == 1
    assert lines[0] == "step 4: good (1 file)"
    assert "was altered" in lines[1]
    assert lines[2] == (
        "1 checkpoint cannot be used. Training passes over it, to step 4. To have it back, restore its files from a "
        "copy and remove its REJECTED.json, if it has one."
    )


def test_verify_says_how_to_go_on_when_no_checkpoint_is_whole(run: Path) -> None:
    _damage(run, 4)
    _damage(run, 8)
    exit_code, lines = _verify(run)
    assert exit_code == 1
    assert lines[-1] == (
        "2 checkpoints cannot be used, and none is left. Restore the files of one from a copy and remove its "
        "REJECTED.json, if it has one, or begin anew: give the command that trained it with --fresh."
    )


def _put_out_of_reach(run: Path, step: int) -> None:
    (info,) = (info for info in list_checkpoints(run) if info.step == step)
    assert info.manifest is not None
    path = info.directory / info.manifest.files[0].path
    path.unlink()
    path.symlink_to(path.name)


def test_verify_says_no_word_of_damage_when_a_checkpoint_only_cannot_be_read(run: Path) -> None:
    _put_out_of_reach(run, 8)
    exit_code, lines = _verify(run)
    assert exit_code == 1
    assert lines[0] == "step 4: good (1 file)"
    assert "It may be whole, so no checkpoint is rejected" in lines[1]
    assert len(lines) == 2


def test_verify_promises_no_older_step_when_the_newest_only_cannot_be_read(run: Path) -> None:
    _damage(run, 4)
    _put_out_of_reach(run, 8)
    exit_code, lines = _verify(run)
    assert exit_code == 1
    assert lines[-1] == (
        "1 checkpoint cannot be used. To have it back, restore its files from a copy and remove its REJECTED.json, if "
        "it has one."
    )


def _call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["checkpoint", *map(str, words)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout


def _facts(*words: object) -> tuple[int, dict[str, Any]]:
    exit_code, printed = _call(*words, "--json")
    return exit_code, json.loads(printed)


def _save(run: Path, step: int, *, changed: float | None = None, cuts: tuple[int, ...] = (0, 6), seed: int = 1) -> None:
    """A checkpoint of one parameter, one of whose six elements may be another."""
    (run / "run.json").write_text("{}")
    master = torch.arange(6.0)
    if changed is not None:
        master[4] = changed
    writers = [
        CheckpointWriter(run, attempt=1, rank=rank, world_size=len(cuts) - 1, policy=CheckpointConfig())
        for rank in range(len(cuts) - 1)
    ]
    config = {"name": run.name, "storage": str(run.parent), "seed": seed}
    for writer, low, high in zip(writers, cuts, cuts[1:], strict=False):
        tensors = {MASTER: master[low:high].clone(), "exp_avg": torch.zeros(high - low)}
        fragment = Fragment("weight", "decay", (2, 3), low, high - low)
        writer.save(step, [FragmentState(fragment, tensors, {"step": 1.0})], {"config": config, "layout": LAYOUT})
        writer.next_loss(2.0)
    for writer in reversed(writers):
        writer.finish()


LAYOUT = {"world_size": 1, "zero_stage": 2, "precision": "fp32", "device": "cpu", "threads": 1}


def test_inspect_shows_the_newest_checkpoint_when_no_step_is_named(run: Path) -> None:
    _save(run, 12)
    exit_code, printed = _call("inspect", run)
    assert exit_code == 0
    for words in ("12", "1 worker, ZeRO 2, cpu, 1 threads each", "fp32", "2 x 3", "exp_avg, master", "rank-00000"):
        assert words in printed


def test_inspect_gives_the_figures_of_every_tensor_when_asked_for_values(run: Path) -> None:
    _save(run, 12, changed=float("inf"))
    _, facts = _facts("inspect", run, "--step", 12, "--values")
    (parameter,) = facts["parameters"]
    assert parameter["values"]["master"] == {"min": 0.0, "max": 5.0, "norm": pytest.approx(39**0.5), "not_finite": 1}
    assert parameter["values"]["exp_avg"] == {"min": 0.0, "max": 0.0, "norm": 0.0, "not_finite": 0}


def test_inspect_shows_why_a_checkpoint_cannot_be_used_when_it_was_rejected(run: Path) -> None:
    reject(list_checkpoints(run)[-1], "it gave another loss", kind="loss")
    _, facts = _facts("inspect", run, "--step", 8)
    assert "it gave another loss" in facts["problem"]


def test_inspect_reads_no_damaged_values(run: Path) -> None:
    _damage(run, 8)
    assert _call("inspect", run, "--values")[0] == 1


def test_inspect_names_the_steps_there_are_when_asked_for_another(run: Path) -> None:
    result = CliRunner().invoke(app, ["checkpoint", "inspect", str(run), "--step", "7"])
    assert result.exit_code != 0
    assert "has no checkpoint of step 7. It has those of steps 4, 8." in result.stderr


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    return first, second


def test_diff_finds_two_runs_equal_when_only_their_names_differ(pair: tuple[Path, Path]) -> None:
    for directory in pair:
        _save(directory, 4)
    assert _call("diff", *pair)[0] == 0


def test_diff_finds_tensors_equal_when_cut_otherwise(pair: tuple[Path, Path]) -> None:
    _save(pair[0], 4)
    _save(pair[1], 4, cuts=(0, 1, 4, 6))
    exit_code, facts = _facts("diff", *pair)
    assert exit_code == 0
    assert (facts["equal"], facts["tensors"]) == (True, [])


def test_diff_names_the_largest_differences_by_state_when_one_element_differs(pair: tuple[Path, Path]) -> None:
    _save(pair[0], 4)
    _save(pair[1], 4, changed=5.0)
    exit_code, facts = _facts("diff", f"{pair[0]}@4", f"{pair[1]}@4")
    assert exit_code == 1
    assert facts["tensors"] == [
        {"parameter": "weight", "state": "master", "largest_absolute": 1.0, "largest_relative": pytest.approx(0.2)}
    ]
    assert facts["compared"] == {"exp_avg": 1, "master": 1}
    printed = _call("diff", *pair)[1]
    assert "1.000e+00  weight" in printed
    assert printed.endswith("different\n")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_diff_finds_values_that_are_not_finite_different_from_others_and_equal_to_themselves(
    value: float, pair: tuple[Path, Path]
) -> None:
    _save(pair[0], 4)
    _save(pair[0], 8, changed=value)
    _save(pair[1], 8, changed=value, cuts=(0, 3, 6))
    assert _call("diff", f"{pair[0]}@8", f"{pair[1]}@8")[0] == 0
    assert "not finite" in _call("diff", f"{pair[0]}@4", f"{pair[1]}@8")[1]


def test_diff_shows_configuration_that_was_changed(pair: tuple[Path, Path]) -> None:
    for directory, seed in zip(pair, (1, 2), strict=True):
        _save(directory, 4, seed=seed)
    exit_code, facts = _facts("diff", *pair)
    assert exit_code == 1
    assert facts["facts"] == [{"key": "config.seed", "before": 1, "after": 2}]


def test_diff_reads_no_file_that_both_have_alike(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in pair:
        _save(directory, 4)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("cluster.checkpoint.rank_file.RankFile.__init__", refuse)
    monkeypatch.setattr("cluster.checkpoint.catalog.file_hashes", refuse)
    assert _call("diff", *pair)[0] == 0


def test_diff_holds_parts_of_bounded_size_when_tensors_are_large(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.checkpoint.inspection.CHUNK_ELEMENTS", 4)
    _save(pair[0], 4)
    _save(pair[1], 4, changed=5.0)
    assert _facts("diff", *pair)[1]["tensors"][0]["largest_absolute"] == 1.0
