"""`checkpoint verify` on real checkpoints: what it says of damage, and what a person can do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cluster.checkpoint import CheckpointWriter, list_checkpoints
from cluster.engine import MASTER, Fragment, FragmentState
from launcher.cli import app


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of two steps."""
    (tmp_path / "run.json").write_text("{}")
    for step in (4, 8):
        writer = CheckpointWriter(tmp_path, attempt=1, rank=0, world_size=1, keep_last=3)
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
        "REJECTED.json, if it has one, or begin anew with `longhaul pretrain CONFIG --fresh`."
    )
