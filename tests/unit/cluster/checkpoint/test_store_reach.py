"""What is gone for good from an object store, against what cannot be read there now; and copies beside a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import save
from faulty_s3 import Fault, FaultyS3

from cluster.checkpoint import (
    CheckpointInfo,
    CheckpointReader,
    LocalCopies,
    VerifiedFiles,
    find_checkpoint,
    list_checkpoints,
    newest_verified,
    reject,
    rejected_for_loss,
    verify,
)
from cluster.checkpoint.manifest import step_directory
from cluster.config import CheckpointConfig
from cluster.errors import CheckpointDamagedError, CheckpointUnreadableError, RunNotFoundError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, remove_tree, write_atomically

RANK_FILE = r"rank-00000\.safetensors"
RELATIVE = "attempt-00001/rank-00000.safetensors"


@pytest.fixture
def saved(store: ObjectPath) -> ObjectPath:
    """A run with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save(store, step, shift=float(step))
    return store


def rank_file(run: StoragePath, step: int = 2) -> StoragePath:
    return step_directory(run, step) / RELATIVE


def remove(path: StoragePath) -> None:
    path.unlink()


def cut_short(path: StoragePath) -> None:
    write_atomically(path, path.read_bytes()[:-1])


def extend(path: StoragePath) -> None:
    write_atomically(path, path.read_bytes() + b"\0")


def flip(path: StoragePath) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    write_atomically(path, bytes(data))


def take_from_another_step(path: StoragePath) -> None:
    write_atomically(path, rank_file(path.parent.parent.parent.parent, 1).read_bytes())


def remove_whole_attempt(path: StoragePath) -> None:
    remove_tree(path.parent)


@pytest.mark.parametrize(
    "damage",
    [remove, cut_short, extend, flip, take_from_another_step, remove_whole_attempt],
    ids=lambda each: each.__name__,
)
def test_damaged_checkpoint_is_passed_over_when_a_file_is_not_what_was_written(
    damage: Callable[[StoragePath], None], saved: ObjectPath
) -> None:
    damage(rank_file(saved))
    assert not list_checkpoints(saved)[-1].unreadable
    found = newest_verified(saved)
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("damage", [cut_short, extend, flip], ids=lambda each: each.__name__)
def test_damaged_checkpoint_is_passed_over_when_its_manifest_is_not_what_was_written(
    damage: Callable[[StoragePath], None], saved: ObjectPath
) -> None:
    damage(step_directory(saved, 2) / "MANIFEST.json")
    assert find_checkpoint(saved).step == 1


def test_checkpoint_is_whole_when_objects_lie_there_that_no_manifest_names(saved: ObjectPath) -> None:
    write_atomically(step_directory(saved, 2) / "attempt-00009" / "a", b"x")
    write_atomically(step_directory(saved, 2) / "notes", b"x")
    verify(find_checkpoint(saved, 2))


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="error", request=RANK_FILE, status=503),
        Fault(kind="error", request=RANK_FILE, status=403),
        Fault(kind="cut", request=RANK_FILE),
        Fault(kind="error", request=f"list-type|{RANK_FILE}", status=503),
    ],
    ids=["503", "403", "no answer", "nothing answers"],
)
def test_nothing_is_rejected_when_a_file_cannot_be_read_now(fault: Fault, saved: ObjectPath, server: FaultyS3) -> None:
    info = find_checkpoint(saved)
    with server.failing(fault), pytest.raises(CheckpointUnreadableError, match=r"\(credentials, endpoint, network\)"):
        newest_verified(saved)
    with server.failing(fault), pytest.raises(CheckpointUnreadableError, match="It may be whole"):
        verify(info)
    assert find_checkpoint(saved).step == 2


def test_missing_object_proves_nothing_when_the_listing_fails(saved: ObjectPath, server: FaultyS3) -> None:
    info = find_checkpoint(saved)
    rank_file(saved).unlink()
    with server.failing(Fault(kind="error", request="list-type")), pytest.raises(CheckpointUnreadableError):
        verify(info)
    with pytest.raises(CheckpointDamagedError, match=f"{RANK_FILE} is missing"):
        verify(info)


def test_missing_object_proves_nothing_when_a_listing_still_has_it(saved: ObjectPath, server: FaultyS3) -> None:
    info = find_checkpoint(saved)
    fault = Fault(kind="error", request=RANK_FILE, status=404)
    with server.failing(fault), pytest.raises(CheckpointUnreadableError):
        verify(info)


def test_whole_checkpoint_out_of_sight_proves_no_damage(saved: ObjectPath) -> None:
    info = find_checkpoint(saved)
    remove_tree(saved)
    with pytest.raises(CheckpointUnreadableError):
        verify(info)


@pytest.mark.parametrize("name", ["MANIFEST.json", "REJECTED.json"])
def test_no_older_checkpoint_is_taken_when_the_newest_cannot_be_read(
    name: str, saved: ObjectPath, server: FaultyS3
) -> None:
    if name == "REJECTED.json":
        write_atomically(step_directory(saved, 2) / name, b"{}")
    with server.failing(Fault(kind="error", request=f"step-00000002/{name}", status=403)):
        assert list_checkpoints(saved)[-1].unreadable
        for choose in (find_checkpoint, newest_verified):
            with pytest.raises(CheckpointUnreadableError, match=f"{name} cannot be read on node"):
                choose(saved)


def test_checkpoints_are_not_taken_for_absent_when_the_store_does_not_answer(
    saved: ObjectPath, server: FaultyS3
) -> None:
    with server.failing(Fault(kind="error")), pytest.raises(CheckpointUnreadableError, match="begin anew with --fresh"):
        list_checkpoints(saved)


def test_run_has_no_checkpoint_when_the_store_has_none(store: ObjectPath) -> None:
    assert list_checkpoints(store) == []
    with pytest.raises(RunNotFoundError, match=r"has no usable checkpoint \(usable steps: none\)"):
        find_checkpoint(store)


def test_usable_steps_are_named_when_the_one_that_is_wanted_is_damaged(saved: ObjectPath) -> None:
    cut_short(rank_file(saved))
    with pytest.raises(Exception, match=r"bytes instead of .* Usable steps: \[1\]"):
        find_checkpoint(saved, 2)


def test_rejections_for_loss_are_found_by_their_marks(saved: ObjectPath, server: FaultyS3) -> None:
    reject(find_checkpoint(saved, 2), "it gave another loss", kind="loss")
    server.asked()
    assert rejected_for_loss(saved, after_step=0) == [2]
    assert len(server.asked()) == 3  # a listing, one manifest, one mark


def test_retention_leaves_an_old_checkpoint_alone_when_it_cannot_be_read(saved: ObjectPath, server: FaultyS3) -> None:
    with server.failing(Fault(kind="error", request="GET .*step-00000001/MANIFEST", status=403)):
        save(saved, 3, policy=CheckpointConfig(keep_last=1))
    assert [info.step for info in list_checkpoints(saved)] == [1, 3]


def test_reader_goes_on_when_the_store_failed_for_a_moment(saved: ObjectPath, server: FaultyS3) -> None:
    info = find_checkpoint(saved, 2)
    assert info.manifest is not None
    with server.failing(Fault(kind="error", request=RANK_FILE, times=6)):
        assert CheckpointReader(info.directory, info.manifest).whole("weight")[0, 0] == 2.0
    with server.failing(Fault(kind="error", request=RANK_FILE)), pytest.raises(CheckpointUnreadableError):
        CheckpointReader(info.directory, info.manifest).whole("weight")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A node's own disk."""
    return tmp_path / "local"


def save_with_copies(run: ObjectPath, step: int, local: Path) -> CheckpointInfo:
    save(run, step, policy=CheckpointConfig(local_copy=str(local)))
    return find_checkpoint(run, step)


def test_no_tensor_is_read_from_the_store_when_every_file_has_a_copy(
    store: ObjectPath, local: Path, server: FaultyS3
) -> None:
    info = save_with_copies(store, 1, local)
    files = VerifiedFiles(info, LocalCopies(local, store))
    server.asked()
    assert files.verify_share(0, 1) is None
    assert info.manifest is not None
    CheckpointReader(info.directory, info.manifest, files.path).whole("weight")
    assert server.asked() == []


def test_store_is_read_when_a_copy_is_damaged(store: ObjectPath, local: Path) -> None:
    info = save_with_copies(store, 1, local)
    copies = LocalCopies(local, store)
    copies.path(1, RELATIVE).write_bytes(b"x")
    files = VerifiedFiles(info, copies)
    assert files.verify_share(0, 1) is None
    assert files.path(RELATIVE) == info.directory / RELATIVE


def test_copies_name_their_run_by_its_uri(store: ObjectPath, local: Path) -> None:
    save_with_copies(store, 1, local)
    (marker,) = local.glob("*/.longhaul-run")
    assert marker.read_text() == str(store)
    assert marker.parent.name.startswith("tiny-")


@pytest.fixture
def other(store: ObjectPath) -> ObjectPath:
    """Another run beside it."""
    return store.parent / "other"


def copies_of(run: ObjectPath, local: Path) -> list[str]:
    return sorted(path.name for path in local.glob(f"{run.name}-*"))


def test_copies_of_a_run_that_is_no_more_are_removed_when_another_saves(
    store: ObjectPath, other: ObjectPath, local: Path
) -> None:
    save_with_copies(other, 1, local)
    remove_tree(other)
    save_with_copies(store, 1, local)
    assert copies_of(other, local) == []
    assert len(copies_of(store, local)) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="error", request="prefix=runs%2F&|prefix=runs/&|prefix=runs%2F$|prefix=runs/$", status=status)
        for status in (403, 404, 503)
    ],
    ids=["refused", "no such bucket", "no answer"],
)
def test_copies_of_a_run_stay_when_the_store_cannot_be_asked_for_it(
    fault: Fault, store: ObjectPath, other: ObjectPath, local: Path, server: FaultyS3
) -> None:
    save_with_copies(other, 1, local)
    remove_tree(other)
    with server.failing(fault):
        save_with_copies(store, 1, local)
        assert server.app.struck
    assert len(copies_of(other, local)) == 1


def test_copies_of_a_run_stay_when_its_bucket_is_another_one_that_is_empty(
    store: ObjectPath, local: Path, server: FaultyS3
) -> None:
    elsewhere = ObjectPath(server.new_bucket()) / "runs" / "other"
    save_with_copies(elsewhere, 1, local)
    remove_tree(elsewhere)  # nothing is left beside it: as if the bucket were another
    save_with_copies(store, 1, local)
    assert len(copies_of(elsewhere, local)) == 1


def test_store_is_asked_once_for_the_runs_of_other_copies(
    store: ObjectPath, other: ObjectPath, local: Path, server: FaultyS3
) -> None:
    save_with_copies(other, 1, local)
    copies = LocalCopies(local, store)
    server.asked()
    copies.prune(1)
    copies.prune(2)
    assert len(server.asked()) == 1
