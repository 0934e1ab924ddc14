"""Copies on a node's own disk: read instead of the storage where they are whole, and never in the way."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SHAPE, WHOLE, save

from cluster.checkpoint import (
    CheckpointInfo,
    CheckpointReader,
    LocalCopies,
    VerifiedFiles,
    find_checkpoint,
    list_checkpoints,
    verify,
)
from cluster.config import CheckpointConfig
from cluster.engines.protocol import MASTER, Fragment
from cluster.errors import CheckpointDamagedError, CheckpointError

WHOLE_FRAGMENT = Fragment("weight", "decay", SHAPE, 0, 35)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "storage" / "run"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tmp_path / "local"


def save_both(run: Path, local: Path, step: int, **options: Any) -> CheckpointInfo:
    save(run, step, policy=CheckpointConfig(local_copy=str(local)), **options)
    return find_checkpoint(run, step)


def scribble(path: Path) -> None:
    """Other bytes, as many as before."""
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))


def stored(info: CheckpointInfo) -> list[Path]:
    assert info.manifest is not None
    return [info.directory / record.path for record in info.manifest.files]


def copied(run: Path, local: Path, info: CheckpointInfo) -> list[Path]:
    assert info.manifest is not None
    return [LocalCopies(local, run).path(info.step, record.path) for record in info.manifest.files]


def load(info: CheckpointInfo, *nodes: LocalCopies | None) -> list[torch.Tensor]:
    """What each rank reads of the whole, one rank on each node, after they have verified together."""
    ranks = [VerifiedFiles(info, node) for node in nodes]
    problems = [files.verify_share(rank, len(nodes)) for rank, files in enumerate(ranks)]
    if any(problems):
        raise CheckpointError(str(problems))
    found = [sum(column) for column in zip(*(files.found_in_storage() for files in ranks), strict=True)]
    for files in ranks:
        files.vouch(found)
    assert info.manifest is not None
    return [CheckpointReader(info.directory, info.manifest, files.path).read(WHOLE_FRAGMENT, MASTER) for files in ranks]


def test_copies_have_the_bytes_of_the_storage(run: Path, local: Path) -> None:
    info = save_both(run, local, 1)
    assert [path.read_bytes() for path in copied(run, local, info)] == [path.read_bytes() for path in stored(info)]


def test_nothing_is_read_from_the_storage_when_every_file_has_a_copy(run: Path, local: Path) -> None:
    info = save_both(run, local, 1)
    for path in stored(info):
        scribble(path)
    node = LocalCopies(local, run)
    for read in load(list_checkpoints(run)[0], node, node):
        assert torch.equal(read, WHOLE)
    with pytest.raises(CheckpointError, match="was altered"):
        verify(info)


@pytest.mark.parametrize("damage", [scribble, os.unlink, lambda path: os.truncate(path, 100)])
def test_storage_is_read_when_a_copy_is_damaged(damage: Any, run: Path, local: Path) -> None:
    info = save_both(run, local, 1)
    for path in copied(run, local, info):
        damage(path)
    assert torch.equal(load(info, LocalCopies(local, run))[0], WHOLE)


def test_checkpoint_is_refused_when_copy_and_storage_are_damaged(run: Path, local: Path) -> None:
    info = save_both(run, local, 1)
    for path in (copied(run, local, info)[1], stored(info)[1]):
        scribble(path)
    with pytest.raises(CheckpointError, match="was altered"):
        load(info, LocalCopies(local, run))


def test_damage_in_the_storage_is_found_when_only_another_node_has_the_copy(
    run: Path, local: Path, tmp_path: Path
) -> None:
    info = save_both(run, local, 1)
    scribble(stored(info)[0])
    with pytest.raises(CheckpointDamagedError, match="was altered"):  # node 0 vouches by its copy, node 1 has none
        load(info, LocalCopies(local, run), LocalCopies(tmp_path / "other", run))
    assert list_checkpoints(run)[0].problem is not None  # the next attempt takes another


def test_storage_is_hashed_once_when_no_node_has_copies(
    run: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = save_both(run, local, 1)
    verified: list[str] = []
    monkeypatch.setattr(
        "cluster.checkpoint.sources.verify", lambda info, records: verified.extend(item.path for item in records)
    )
    load(info, None, None)
    assert sorted(verified) == ["attempt-00001/rank-00000.safetensors", "attempt-00001/rank-00001.safetensors"]


def test_copies_of_two_checkpoints_are_kept_when_more_are_saved(run: Path, local: Path) -> None:
    for step in (2, 4, 6):
        save_both(run, local, step)
    assert sorted(path.name for path in local.glob("*/step-*")) == ["step-00000004", "step-00000006"]


def test_copies_of_a_future_that_was_given_up_are_removed(run: Path, local: Path) -> None:
    for step in (2, 4, 3):
        save_both(run, local, step)
    assert sorted(path.name for path in local.glob("*/step-*")) == ["step-00000002", "step-00000003"]


def test_copies_of_a_run_that_is_no_more_are_removed_when_another_saves(run: Path, local: Path) -> None:
    save_both(run, local, 1)
    run.rename(run.with_name("elsewhere"))
    other = run.with_name("other")
    other.mkdir()
    save_both(other, local, 1)
    assert [path.name.rsplit("-", 1)[0] for path in local.iterdir()] == ["other"]


def _save_another(run: Path, local: Path) -> None:
    """Another run, in another storage, whose copies are in the same place; with that, old ones are removed."""
    other = run.parents[1] / "other-storage" / "other"
    other.mkdir(parents=True)
    save_both(other, local, 1)


@pytest.mark.parametrize("emptied", [False, True])
def test_copies_of_a_run_stay_when_its_storage_is_not_mounted(emptied: bool, run: Path, local: Path) -> None:
    info = save_both(run, local, 1)
    run.parent.rename(run.parent.with_name("unmounted"))
    if emptied:
        run.parent.mkdir()  # the mount point is there, and nothing on it
    _save_another(run, local)
    assert all(path.exists() for path in copied(run, local, info))


@pytest.mark.parametrize("marker", ["RUN", ".longhaul-run"])
@pytest.mark.parametrize("text", ["7", "/nowhere/austen", "", "a\0b"])
def test_directory_of_another_program_stays_when_copies_share_its_place(
    marker: str, text: str, run: Path, local: Path
) -> None:
    (local / "austen").mkdir(parents=True)
    (local / "austen" / marker).write_text(text)
    run.with_name("austen").mkdir()
    (local / "simulation").mkdir()
    (local / "simulation" / marker).write_text(str(run.with_name("gone")))
    save_both(run, local, 1)
    assert (local / "austen" / marker).exists()
    assert (local / "simulation" / marker).exists()


def test_two_runs_of_one_name_do_not_share_copies(run: Path, local: Path, tmp_path: Path) -> None:
    twin = tmp_path / "elsewhere" / "run"
    twin.mkdir(parents=True)
    for directory, shift in ((run, 0.0), (twin, 1.0)):
        save_both(directory, local, 1, shift=shift)
    assert len(list(local.iterdir())) == 2


def unwritable(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local.write_text("a file is in the place of the directory")


def without_room(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 3})
    monkeypatch.setattr("cluster.checkpoint.local_copy.shutil.disk_usage", lambda path: usage)


def full_while_writing(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, block: memoryview) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cluster.checkpoint.local_copy.open", lambda *arguments: Full(), raising=False)


@pytest.mark.parametrize("disk", [unwritable, without_room, full_while_writing])
def test_checkpoint_is_whole_and_the_log_has_one_line_when_the_local_disk_fails(
    disk: Any, run: Path, local: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk(local, monkeypatch)
    node = LocalCopies(local, run)
    monkeypatch.setattr("cluster.checkpoint.writer.LocalCopies", lambda *arguments: node)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            verify(save_both(run, local, step))
    (message,) = caplog.messages
    assert message.startswith(f"no local copy at {local}")
    assert "go to the storage alone" in message
    assert not list(local.rglob("*.safetensors")) if local.is_dir() else True


def test_no_half_copy_is_left_when_the_storage_fails(run: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cluster.storage.operations.os.fsync", full)
    with pytest.raises(Exception, match="the storage is full"):
        save_both(run, local, 1, cuts=(0, 35))
    assert [path.name for path in local.rglob("*") if path.is_file()] == [".longhaul-run"]
