"""What cannot be read here and now may be whole: it is neither rejected, nor deleted, nor passed over."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save

from cluster.checkpoint import (
    CheckpointInfo,
    CheckpointReader,
    VerifiedFiles,
    catalog,
    clean_leftovers,
    find_checkpoint,
    list_checkpoints,
    newest_verified,
    reject,
    verify,
    writer,
)
from cluster.config import CheckpointConfig
from cluster.errors import CheckpointDamagedError, CheckpointError, CheckpointUnreadableError, StorageError


def files_of(info: CheckpointInfo) -> list[Path]:
    assert info.manifest is not None
    return [info.directory / record.path for record in info.manifest.files]


def put_out_of_reach(path: Path) -> None:
    """Make every access to a file an error of the system that says nothing about its bytes."""
    path.rename(path.with_name(f"kept-{path.name}"))
    path.symlink_to(path.name)


def refusing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every read of a tensor file end with an error, after all tries."""

    def refuse(path: Path) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("cluster.checkpoint.catalog.file_hashes", refuse)
    monkeypatch.setattr("cluster.checkpoint.catalog.retried", lambda operation, what: operation())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ESTALE, errno.EIO, errno.ENOENT])
def test_verification_proves_no_damage_when_a_file_cannot_be_read(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    refusing(number, monkeypatch)
    with pytest.raises(CheckpointUnreadableError) as raised:
        verify(info)
    assert str(raised.value) == (
        f"{files_of(info)[0]} cannot be read on node {socket.gethostname()}: {os.strerror(number)}. It may be whole, "
        "so no checkpoint is rejected for it and no older one is taken in its place. Give the node access to it "
        "(mount, owner, mode, server) and give the same command again. If it is lost for good, remove "
        f"{info.directory}: then the one before is taken."
    )


def without_the_file(info: CheckpointInfo) -> None:
    files_of(info)[0].unlink()


def without_its_directory(info: CheckpointInfo) -> None:
    for path in files_of(info):
        path.unlink()
    files_of(info)[0].parent.rmdir()


@pytest.mark.parametrize("remove", [without_the_file, without_its_directory])
def test_verification_proves_damage_when_a_listing_lacks_the_file(
    remove: Callable[[CheckpointInfo], None], tmp_path: Path
) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    remove(info)
    with pytest.raises(CheckpointDamagedError, match=r"rank-00000\.safetensors is missing\."):
        verify(info)
    assert not list_checkpoints(tmp_path)[0].unreadable


def test_verification_proves_no_damage_when_the_whole_checkpoint_is_out_of_sight(tmp_path: Path) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    (tmp_path / "checkpoints").rename(tmp_path / "unmounted")
    with pytest.raises(CheckpointUnreadableError, match="No such file or directory"):
        verify(info)


def test_share_of_a_rank_names_the_rank_when_a_file_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    files = VerifiedFiles(find_checkpoint(tmp_path))
    refusing(errno.EACCES, monkeypatch)
    found = files.verify_share(1, 2)
    assert isinstance(found, CheckpointUnreadableError)
    assert str(found).startswith(f"rank 1: {tmp_path}")


def test_load_rejects_nothing_when_a_file_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    refusing(errno.EACCES, monkeypatch)
    with pytest.raises(CheckpointUnreadableError, match="Permission denied"):
        VerifiedFiles(info).path("attempt-00001/rank-00000.safetensors")
    assert find_checkpoint(tmp_path).step == 1


def test_reader_proves_no_damage_when_a_file_cannot_be_opened(tmp_path: Path) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    put_out_of_reach(files_of(info)[0])
    assert info.manifest is not None
    with pytest.raises(CheckpointUnreadableError, match="symbolic links"):
        CheckpointReader(info.directory, info.manifest).whole("weight")


def test_reader_tells_damage_when_a_file_was_cut_short_after_it_was_verified(tmp_path: Path) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    path = files_of(info)[0]
    os.truncate(path, path.stat().st_size - 4)
    assert info.manifest is not None
    with pytest.raises(CheckpointDamagedError, match="ends after"):
        CheckpointReader(info.directory, info.manifest).whole("weight", "exp_avg")


@pytest.mark.parametrize("name", ["MANIFEST.json", "REJECTED.json", "attempt-00001/rank-00000.safetensors"])
@pytest.mark.parametrize("choose", [find_checkpoint, newest_verified])
def test_no_older_checkpoint_is_taken_when_the_newest_cannot_be_read(
    name: str, choose: Callable[[Path], CheckpointInfo | None], tmp_path: Path
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    path = find_checkpoint(tmp_path).directory / name
    if not path.exists():
        path.write_bytes(b"{}")
    put_out_of_reach(path)
    assert list_checkpoints(tmp_path)[-1].unreadable
    with pytest.raises(CheckpointUnreadableError, match=f"{name} cannot be read on node"):
        choose(tmp_path)


def test_newest_verified_rejects_nothing_when_a_file_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    refusing(errno.EIO, monkeypatch)
    with pytest.raises(CheckpointUnreadableError, match="Input/output error"):
        newest_verified(tmp_path)
    monkeypatch.undo()
    assert find_checkpoint(tmp_path).step == 1


def test_newest_verified_goes_on_when_retention_removed_the_checkpoint_while_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    newest, original = find_checkpoint(tmp_path), catalog.file_hashes

    def removed_meanwhile(path: Path) -> Any:
        if path.is_relative_to(newest.directory):
            catalog.delete(newest.directory)
        return original(path)

    monkeypatch.setattr(catalog, "file_hashes", removed_meanwhile)
    found = newest_verified(tmp_path)
    assert found is not None
    assert found.step == 1


def test_checkpoints_are_not_taken_for_absent_when_their_directory_cannot_be_listed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    put_out_of_reach(tmp_path / "checkpoints")
    with pytest.raises(CheckpointUnreadableError, match=r"checkpoints cannot be read on node .* begin anew with"):
        list_checkpoints(tmp_path)


@pytest.mark.parametrize("name", ["MANIFEST.json", "attempt-00001/rank-00000.safetensors"])
def test_retention_leaves_an_old_checkpoint_alone_when_it_cannot_be_read(name: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    put_out_of_reach(find_checkpoint(tmp_path).directory / name)
    for step in (2, 3):
        save(tmp_path, step, policy=CheckpointConfig(keep_last=1))
    assert [info.step for info in list_checkpoints(tmp_path)] == [1, 3]


def test_retention_keeps_a_permanent_step_when_its_damage_was_never_put_on_record(tmp_path: Path) -> None:
    for step in (2, 3):
        save(tmp_path, step)
        files_of(find_checkpoint(tmp_path))[0].unlink()
    save(tmp_path, 5, policy=CheckpointConfig(every_steps=1, keep_last=1, keep_every_steps=2))
    assert [info.step for info in list_checkpoints(tmp_path)] == [2, 5]  # 3 would go if it were whole


def test_files_of_every_attempt_stay_when_the_manifest_cannot_be_read(tmp_path: Path) -> None:
    save(tmp_path, 1)
    directory = find_checkpoint(tmp_path).directory
    (directory / "attempt-00002").mkdir()
    put_out_of_reach(directory / "MANIFEST.json")
    assert clean_leftovers(tmp_path, attempt=3) == []
    assert sorted(path.name for path in directory.glob("attempt-*")) == ["attempt-00001", "attempt-00002"]


def test_rejection_stays_when_the_step_is_saved_again_and_its_manifest_cannot_be_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, cuts=(0, 35))
    reject(list_checkpoints(tmp_path)[0], "it gave another loss", kind="loss")

    def end_before_the_manifest(path: Path, data: bytes, version: None) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, "write_if_unchanged", end_before_the_manifest)
    with pytest.raises(StorageError, match="the storage is full"):
        save(tmp_path, 1, cuts=(0, 35))
    (info,) = list_checkpoints(tmp_path)
    assert info.rejection is not None


def test_rejection_does_not_hold_when_it_is_of_the_manifest_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    reject(info, "it gave another loss", kind="loss")
    left = (info.directory / "REJECTED.json").read_bytes()
    save(tmp_path, 1)
    (info.directory / "REJECTED.json").write_bytes(left)  # killed between publishing and removing it
    assert find_checkpoint(tmp_path).step == 1
    clean_leftovers(tmp_path, attempt=2)
    assert not (info.directory / "REJECTED.json").exists()


def test_rejection_holds_when_it_names_no_manifest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = find_checkpoint(tmp_path).directory / "REJECTED.json"
    path.write_bytes(b'{"kind": "damage", "reason": "by hand", "time_unix_seconds": 1.0}')
    with pytest.raises(CheckpointError, match="was rejected: by hand"):
        find_checkpoint(tmp_path, 1)
    clean_leftovers(tmp_path, attempt=2)
    assert path.exists()
