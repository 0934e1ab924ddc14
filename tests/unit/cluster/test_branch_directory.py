"""The making of a branch: what stands in its directory, and what is left when something goes wrong meanwhile."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from branches import BATCH, STEP, parent_directory, plan_child, save

from cluster import branch_directory
from cluster.branch import Branch, plan_branch
from cluster.branch_directory import create_branch
from cluster.checkpoint import find_checkpoint, list_checkpoints, verify
from cluster.checkpoint.manifest import step_directory
from cluster.config import RunConfig
from cluster.errors import CheckpointError, RunRefusedError, StorageError
from cluster.healing import HEALING
from cluster.run_directory import RunDirectory, config_as_dict
from data_pipeline.skip_ledger import SkipLedger

KILLED = 9


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_branch_is_a_run_with_the_parents_state_and_an_identity_of_its_own(parent: RunConfig) -> None:
    branch = plan_child(parent, schedule__name="constant")
    told: list[tuple[int, int]] = []
    directory = create_branch(branch, "name: child\n", lambda done, total: told.append((done, total)))
    facts, theirs = RunDirectory(directory).facts(), RunDirectory(parent_directory(parent)).facts()
    assert facts["id"] != theirs["id"]
    assert facts["wandb"]["id"] != theirs["wandb"]["id"]
    sealed = json.loads((step_directory(parent_directory(parent), STEP) / "MANIFEST.json").read_bytes())
    assert facts["parent"] == {
        "run": theirs["id"],
        "name": "tiny",
        "directory": str(parent_directory(parent)),
        "step": STEP,
        "checkpoint": sealed["checksum"],
        "wandb_id": theirs["wandb"]["id"],
    }
    assert facts["published_step"] == STEP
    assert listing(directory) == ["checkpoints", "config.yaml", "run.json", "tokenizer.model"]
    assert told == [(0, 2000), (1000, 2000), (2000, 2000)]


def test_branch_checkpoint_is_sealed_for_the_child(parent: RunConfig) -> None:
    branch = plan_child(parent, optimizer__learning_rate=1e-4)
    (info,) = list_checkpoints(create_branch(branch, ""))
    verify(info)
    assert info.manifest is not None
    run = info.manifest.run
    assert run["config"] == config_as_dict(branch.config)
    assert run["config"]["optimizer"]["learning_rate"] == 1e-4
    assert run["wandb_id"] == RunDirectory(branch.directory).facts()["wandb"]["id"]
    assert run["branched_from"] == RunDirectory(branch.directory).facts()["parent"]
    assert run["layout"] == {"world_size": 2}
    assert {piece.file for piece in info.manifest.pieces["weight"]} == {file.path for file in info.manifest.files}


def test_tensor_files_are_shared_with_the_parent_when_the_file_system_links(parent: RunConfig) -> None:
    directory = create_branch(plan_child(parent), "")
    theirs = sorted(step_directory(parent_directory(parent), STEP).glob("attempt-*/*"))
    ours = sorted(step_directory(directory, STEP).glob("attempt-*/*"))
    assert all(a.samefile(b) for a, b in zip(theirs, ours, strict=True))
    shutil.rmtree(parent_directory(parent))
    verify(find_checkpoint(directory))


def test_tensor_files_are_copied_when_they_cannot_be_linked(parent: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    directory = create_branch(plan_child(parent), "")
    theirs = sorted(step_directory(parent_directory(parent), STEP).glob("attempt-*/*"))
    ours = sorted(step_directory(directory, STEP).glob("attempt-*/*"))
    assert not any(a.samefile(b) for a, b in zip(theirs, ours, strict=True))
    verify(find_checkpoint(directory))


def test_parent_is_untouched(parent: RunConfig) -> None:
    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in parent_directory(parent).rglob("*") if path.is_file()}

    before = state()
    create_branch(plan_child(parent), "")
    assert state() == before


def test_skips_and_alarms_are_taken_over_when_the_data_goes_on(parent: RunConfig) -> None:
    shutil.rmtree(step_directory(parent_directory(parent), STEP))
    save(parent, STEP, SkipLedger().add(2, 5))
    manifest = find_checkpoint(create_branch(plan_child(parent), "")).manifest
    assert manifest is not None
    assert manifest.run["skip_ledger"] == [[2, 5]]
    assert manifest.run["data_position"] == STEP * BATCH + 3
    assert manifest.run[HEALING] == {"skips": [[2, 5]], "withheld": [3], "rollbacks": [], "losses": [6.0, 5.9]}


@pytest.mark.parametrize("taken", ["run", "directory", "file", "dangling link"])
def test_branch_is_refused_when_its_name_is_taken(taken: str, parent: RunConfig) -> None:
    branch = plan_child(parent)
    if taken == "run":
        create_branch(branch, "")
    elif taken == "directory":
        branch.directory.mkdir()
    elif taken == "file":
        branch.directory.write_bytes(b"")
    else:
        branch.directory.symlink_to("nowhere")
    with pytest.raises(RunRefusedError, match=r"already, and a branch replaces nothing\. Give the branch another NAME"):
        plan_child(parent)
    with pytest.raises(RunRefusedError, match="already, and a branch replaces nothing"):
        create_branch(branch, "")
    assert listing(Path(parent.storage)) == ["child", "tiny"]


def test_nothing_is_made_when_the_checkpoint_is_damaged(parent: RunConfig) -> None:
    path = step_directory(parent_directory(parent), STEP) / "attempt-00002" / "rank-00001.safetensors"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointError, match=rf"checkpoint file {path} was altered.* Branch from another step"):
        create_branch(plan_child(parent), "")
    assert listing(Path(parent.storage)) == ["tiny"]
    assert len([info for info in list_checkpoints(parent_directory(parent)) if info.problem is None]) == 2


def test_nothing_is_made_when_retention_removes_the_checkpoint_meanwhile(parent: RunConfig) -> None:
    branch = plan_child(parent)
    shutil.rmtree(step_directory(parent_directory(parent), STEP))
    with pytest.raises(CheckpointError, match="is gone: the run that it belongs to goes on, and its retention removed"):
        create_branch(branch, "")
    assert listing(Path(parent.storage)) == ["tiny"]


def test_branch_is_whole_when_retention_removes_the_checkpoint_once_it_is_linked(
    parent: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify_late(*arguments: Any) -> None:
        shutil.rmtree(step_directory(parent_directory(parent), STEP), ignore_errors=True)
        verify(*arguments)

    monkeypatch.setattr(branch_directory, "verify", verify_late)
    verify(find_checkpoint(create_branch(plan_child(parent), "")))


def test_nothing_is_made_when_the_storage_is_full(parent: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    branch = plan_child(parent)
    monkeypatch.setattr(branch_directory, "sync_directory", full)
    with pytest.raises(StorageError, match=r"is full .* the branch was not made, and nothing of it is left"):
        create_branch(branch, "")
    assert listing(Path(parent.storage)) == ["tiny"]


@pytest.fixture
def killed(parent: RunConfig) -> Callable[[str], Branch]:
    """Makes a branch in a process that dies where it would call a function of `branch_directory`."""

    def create(at: str) -> Branch:
        branch = plan_child(parent)
        pid = os.fork()
        if pid == 0:
            setattr(branch_directory, at, lambda *_: os._exit(KILLED))
            create_branch(branch, "")
            os._exit(0)  # the moment to die at never came
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == KILLED
        return branch

    return create


@pytest.mark.parametrize("at", ["_link_or_copy", "verify", "write_atomically", "_publish"])
def test_nothing_is_found_and_the_next_branch_cleans_up_when_killed(
    at: str, killed: Callable[[str], Branch], parent: RunConfig
) -> None:
    branch = killed(at)
    assert not branch.directory.exists()
    assert len(listing(Path(parent.storage))) == 2
    create_branch(branch, "")
    assert listing(Path(parent.storage)) == ["child", "tiny"]


def test_another_command_is_left_alone_when_it_is_making_a_branch(
    parent: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(plan_child(parent), config=replace(parent, name="other"))

    def make_the_other_first(*arguments: Any) -> None:
        monkeypatch.undo()
        create_branch(other, "")
        verify(*arguments)

    monkeypatch.setattr(branch_directory, "verify", make_the_other_first)
    create_branch(plan_child(parent), "")
    assert listing(Path(parent.storage)) == ["child", "other", "tiny"]


def test_lineage_goes_back_to_the_first_run_when_a_branch_is_branched(parent: RunConfig) -> None:
    child = plan_child(parent)
    create_branch(child, "")
    grandchild = plan_branch(child.directory, STEP, replace(child.config, name="grandchild"))
    facts = RunDirectory(create_branch(grandchild, "")).facts()
    assert facts["parent"]["name"] == "child"
    assert facts["parent"]["parent"] == RunDirectory(child.directory).facts()["parent"]
