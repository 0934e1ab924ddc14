"""Branches into, within and out of an object store; and models that are taken from one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from branches import STEP, plan_child
from checkpoints import save
from faulty_s3 import Fault, FaultyS3

from cluster import branch_objects
from cluster.branch import CLAIM_NAME, Branch, plan_branch
from cluster.branch_directory import create_branch
from cluster.checkpoint import find_checkpoint, list_checkpoints, verify
from cluster.checkpoint.manifest import step_directory
from cluster.config import RunConfig
from cluster.errors import (
    CheckpointDamagedError,
    CheckpointUnreadableError,
    RunBusyError,
    RunNotFoundError,
    RunRefusedError,
    StorageError,
)
from cluster.inference import _resolve
from cluster.lease import hold
from cluster.run_directory import RunDirectory
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import list_sizes, write_atomically

OF_A_BRANCH = [
    "checkpoints/step-00000004/MANIFEST.json",
    "checkpoints/step-00000004/attempt-00000/rank-00000.safetensors",
    "checkpoints/step-00000004/attempt-00000/rank-00001.safetensors",
    "config.yaml",
    "run.json",
    "tokenizer.model",
]


@pytest.fixture
def planned(parent: RunConfig, store: ObjectPath) -> Branch:
    """A branch of a run in a directory that is to lie in a store."""
    return plan_child(parent, storage=str(store.parent))


def names(branch: Branch) -> list[str]:
    assert isinstance(branch.directory, ObjectPath)
    return sorted(list_sizes(branch.directory))


def test_branch_is_a_run_with_the_parents_state_when_it_lies_in_a_store(planned: Branch) -> None:
    directory = create_branch(planned, "name: child\n")
    assert names(planned) == OF_A_BRANCH
    verify(find_checkpoint(directory, STEP))
    assert RunDirectory(directory).facts()["parent"]["name"] == "tiny"
    assert (directory / "config.yaml").read_bytes() == b"name: child\n"


def test_run_appears_last_when_its_branch_is_made(planned: Branch, server: FaultyS3) -> None:
    create_branch(planned, "")
    puts = [line.split("/child/")[1] for line in server.asked() if line.startswith("PUT runs/child/")]
    assert [name for name in puts if not name.startswith("lease/")][-1] == "run.json"


def test_store_copies_by_itself_when_parent_and_child_lie_in_it(planned: Branch, server: FaultyS3) -> None:
    create_branch(planned, "")
    grandchild = plan_branch(planned.directory, STEP, replace(planned.config, name="grandchild"))
    server.asked()
    create_branch(grandchild, "")
    uploads = [line for line in server.app.requests if "uploads" in line or "uploadId" in line]
    assert uploads == []
    verify(find_checkpoint(grandchild.directory, STEP))
    assert RunDirectory(grandchild.directory).facts()["parent"]["parent"]["name"] == "tiny"


def test_branch_lies_in_a_directory_when_its_parent_is_in_a_store(planned: Branch, tmp_path: Path) -> None:
    create_branch(planned, "")
    config = replace(planned.config, name="home", storage=str(tmp_path / "home"))
    directory = create_branch(plan_branch(planned.directory, STEP, config), "")
    assert directory == tmp_path / "home" / "home"
    verify(find_checkpoint(directory, STEP))


def test_branch_is_refused_when_its_name_is_taken_by_a_run(planned: Branch, parent: RunConfig) -> None:
    create_branch(planned, "")
    for attempt in (lambda: plan_child(parent, storage=planned.config.storage), lambda: create_branch(planned, "")):
        with pytest.raises(RunRefusedError, match=r"child is a run already, and a branch replaces nothing"):
            attempt()
    assert names(planned) == OF_A_BRANCH


def test_branch_is_refused_when_its_name_is_taken_by_something(planned: Branch) -> None:
    write_atomically(planned.directory / "thesis.txt", b"x")
    with pytest.raises(RunRefusedError, match="child is something already"):
        create_branch(planned, "")
    assert names(planned) == ["thesis.txt"]


def test_branch_is_refused_when_another_command_is_making_it(planned: Branch) -> None:
    with hold(planned.directory), pytest.raises(RunBusyError):
        create_branch(planned, "")


def test_nothing_is_made_when_the_checkpoint_is_damaged(planned: Branch, parent: RunConfig) -> None:
    path = Path(parent.storage) / "tiny" / "checkpoints" / "step-00000004" / "attempt-00002" / "rank-00001.safetensors"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointDamagedError, match=rf"checkpoint file {path} was altered.* Branch from another step"):
        create_branch(planned, "")
    assert names(planned) == []


def test_unreadable_checkpoint_is_not_called_damaged_when_a_branch_is_made(
    planned: Branch, server: FaultyS3, impatient: None
) -> None:
    fault = Fault(kind="error", request="GET .*attempt-00000/rank-00001", status=403)
    with server.failing(fault), pytest.raises(CheckpointUnreadableError, match="It may be whole"):
        create_branch(planned, "")


def test_branch_is_made_when_the_store_failed_for_a_moment(planned: Branch, server: FaultyS3) -> None:
    with server.failing(Fault(kind="lost", request="PUT .*child/", times=2), Fault(kind="error", times=2)):
        create_branch(planned, "")
    assert names(planned) == OF_A_BRANCH


def test_error_names_the_branch_when_the_store_goes_on_failing(planned: Branch, server: FaultyS3) -> None:
    fault = Fault(kind="error", request="PUT .*child/config.yaml", status=500)
    with server.failing(fault), pytest.raises(StorageError, match=r"branch s3://.*/child could not be made: .* 500"):
        create_branch(planned, "")
    assert names(planned) == []


def test_leftovers_of_a_command_that_was_killed_are_removed_by_the_next(planned: Branch) -> None:
    for name in (CLAIM_NAME, "checkpoints/step-00000004/attempt-00000/rank-00007.safetensors"):
        write_atomically(planned.directory / name, b"x")
    create_branch(planned, "")
    assert names(planned) == OF_A_BRANCH


def test_model_is_resolved_from_a_run_or_a_checkpoint_in_a_store(store: ObjectPath) -> None:
    write_atomically(store / "run.json", b"{}")
    for step in (1, 2):
        save(store, step)
    assert _resolve(store)[0].step == 2
    info, run = _resolve(step_directory(store, 1))  # type: ignore[arg-type]
    assert (info.step, run) == (1, store)
    with pytest.raises(RunNotFoundError, match="is neither a run nor a checkpoint"):
        _resolve(store / "checkpoints")


def test_store_that_does_not_answer_is_named_when_a_model_is_wanted(store: ObjectPath, server: FaultyS3) -> None:
    with server.failing(Fault(kind="error")), pytest.raises(StorageError, match=r"run\.json cannot be read: the store"):
        _resolve(store)
    assert list_checkpoints(store) == []


def test_branch_of_another_command_stays_when_this_one_was_taken_for_dead(
    planned: Branch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the small files is put; then this command is frozen, and another one makes the branch."""
    target = planned.directory
    assert isinstance(target, ObjectPath)
    original = branch_objects.publish

    def frozen(small: Path, place: ObjectPath, still_ours: Callable[[], None]) -> None:
        write_atomically(place / "lease" / "0000000009.json", b"{}")
        write_atomically(place / "run.json", b"theirs")
        original(small, place, still_ours)

    monkeypatch.setattr(branch_objects, "publish", frozen)
    with pytest.raises(RunBusyError, match="taken over"):
        create_branch(planned, "")
    assert (target / "run.json").read_bytes() == b"theirs"
    assert (step_directory(target, STEP) / "MANIFEST.json").exists()
