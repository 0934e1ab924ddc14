"""Storage that fails for a moment, storage without room, parts that are altered before they are published."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SHAPE, WHOLE, save, states

from cluster.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    WriterHooks,
    find_checkpoint,
    list_checkpoints,
    verify,
)
from cluster.checkpoint import part as part_module
from cluster.config import CheckpointConfig
from cluster.engines.flat_state import Placement, snapshot
from cluster.engines.protocol import MASTER, Fragment
from cluster.errors import StorageError
from cluster.storage.retry import TRANSIENT, Backoff, retried


def failing(numbers: list[int]) -> Callable[[], str]:
    """Fails with these errors of the system, one after the other, then succeeds."""
    left = list(numbers)

    def operation() -> str:
        if left:
            raise OSError(left[0], os.strerror(left.pop(0)))
        return "done"

    return operation


def recording(waits: list[float], **options: Any) -> Backoff:
    return Backoff(sleep=waits.append, fraction=lambda: 0.0, **options)


def test_waits_double_up_to_the_longest_when_errors_go_on() -> None:
    waits: list[float] = []
    with pytest.raises(OSError, match="Stale file handle"):
        retried(failing([errno.ESTALE] * 10), "x", backoff=recording(waits))
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_waits_are_cut_by_up_to_half_at_random() -> None:
    assert Backoff(fraction=lambda: 0.0).wait_seconds(3) == 2.0
    assert Backoff(fraction=lambda: 0.5).wait_seconds(3) == 1.5
    assert {Backoff().wait_seconds(3) for _ in range(9)} != {Backoff().wait_seconds(3)}


@pytest.mark.parametrize("number", sorted(TRANSIENT))
def test_transient_errors_are_tried_again(number: int) -> None:
    waits: list[float] = []
    assert retried(failing([number]), "x", backoff=recording(waits)) == "done"
    assert waits == [0.5]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EFBIG]
)
def test_lasting_errors_are_not_tried_again(number: int) -> None:
    waits: list[float] = []
    with pytest.raises(OSError, match=os.strerror(number).replace("(", r"\(").replace(")", r"\)")):
        retried(failing([number]), "x", backoff=recording(waits))
    assert waits == []


def test_nothing_is_tried_again_when_nobody_waits_for_it() -> None:
    waits: list[float] = []
    with pytest.raises(OSError, match="Input/output error"):
        retried(failing([errno.EIO]), "x", backoff=recording(waits), given_up=lambda: True)
    assert waits == []


@pytest.mark.parametrize(
    "target",
    [
        "cluster.storage.operations.os.fsync",
        "cluster.checkpoint.writer.write_atomically",
        "cluster.checkpoint.writer.sync_directory",
        "cluster.checkpoint.part.read_index",
    ],
)
def test_checkpoint_is_whole_when_the_storage_failed_for_a_moment(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    module, name = target.rsplit(".", 1)
    holder = __import__(module.removesuffix(".os"), fromlist=["_"])
    holder = holder.os if module.endswith(".os") else holder
    original, errors = getattr(holder, name), [errno.EIO, errno.ESTALE]

    def flaky(*arguments: Any) -> Any:
        if errors:
            raise OSError(errors[0], os.strerror(errors.pop(0)))
        return original(*arguments)

    monkeypatch.setattr(target, flaky)
    save(tmp_path, 1, cuts=(0, 35), backoff=recording(waits))
    assert len(waits) == 2
    verify(find_checkpoint(tmp_path))


def test_checkpoint_is_given_up_at_once_when_the_storage_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cluster.storage.operations.os.fsync", full)
    with pytest.raises(StorageError, match=r"could not be written to .*: the storage is full\. Earlier"):
        save(tmp_path, 1, cuts=(0, 35), backoff=recording(waits))
    assert waits == []


def no_room(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    """Have the storage report so much room."""
    real = os.statvfs

    def statvfs(path: Any) -> os.statvfs_result:
        fields = list(real(path))
        fields[0], fields[1], fields[4] = 1, 1, free_bytes  # f_bsize, f_frsize, f_bavail
        return os.statvfs_result(fields)

    monkeypatch.setattr("cluster.storage.operations.os.statvfs", statvfs)


def test_nothing_is_written_when_there_is_less_room_than_the_state_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room(monkeypatch, 279)
    written: list[Path] = []
    monkeypatch.setattr(part_module, "write_tensors", lambda path, *rest: written.append(path))
    with pytest.raises(
        StorageError,
        match=r"step 1 could not be written to .*step-00000001/attempt-00001: 280 bytes are needed there and 279 are "
        r"free\. Earlier checkpoints are whole\. Make room \(or lower checkpoint\.keep_last\)",
    ):
        save(tmp_path, 1, cuts=(0, 35))
    assert written == []
    assert list_checkpoints(tmp_path) == []


def test_checkpoint_is_written_when_there_is_just_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_room(monkeypatch, 280)
    save(tmp_path, 1, cuts=(0, 35))
    verify(find_checkpoint(tmp_path))


def test_main_rank_counts_the_whole_checkpoint_when_one_was_published_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = [
        CheckpointWriter(tmp_path, attempt=1, rank=rank, world_size=2, policy=CheckpointConfig()) for rank in (0, 1)
    ]
    for rank, writer in enumerate(writers):
        writer.save(1, states(17 * rank, 17 + rank), {})
        writer.next_loss(1.0)
    for writer in reversed(writers):
        writer.finish()
    no_room(monkeypatch, 200)  # enough for a part of 136 or 144 bytes, not for both with their headers
    writers[0].save(2, states(0, 17), {})
    with pytest.raises(StorageError, match=r"bytes are needed there and 200 are free"):
        writers[0].finish()


def test_one_checkpoint_is_missed_and_the_next_one_made_when_room_was_short_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(tmp_path, attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
    with monkeypatch.context() as short:
        no_room(short, 0)
        writer.save(1, states(0, 35), {})
        assert writer._thread is not None
        writer._thread.join()
    writer.save(2, states(0, 35), {})
    writer.finish()
    assert [info.step for info in list_checkpoints(tmp_path)] == [2]


def test_checkpoint_is_not_published_when_a_part_was_altered_after_it_was_handed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = part_module.read_index

    def altered(path: Path) -> dict[str, Any]:
        path.write_bytes(path.read_bytes().replace(b'"offset": 0', b'"offset": 1'))
        return original(path)

    monkeypatch.setattr(part_module, "read_index", altered)
    with pytest.raises(StorageError, match="does not match its own checksum"):
        save(tmp_path, 1, cuts=(0, 35))
    assert list_checkpoints(tmp_path) == []


def test_checkpoint_is_no_failure_when_only_its_note_in_the_run_could_not_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(event: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path, 1, cuts=(0, 35), hooks=WriterHooks(on_saved=refuse))
    verify(find_checkpoint(tmp_path))
    assert "that step 1 was saved could not be noted in the run: the storage is full" in caplog.messages


def test_only_tensors_and_the_manifest_are_left_when_published(tmp_path: Path) -> None:
    save(tmp_path, 1)
    directory = find_checkpoint(tmp_path).directory
    assert sorted(path.name for path in directory.rglob("*") if path.is_file()) == [
        "MANIFEST.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    ]


def test_next_snapshot_takes_the_memory_of_the_last_one_when_that_is_written(tmp_path: Path) -> None:
    values = torch.nn.Parameter(torch.zeros(35))
    optimizer = torch.optim.AdamW([values])
    optimizer.state[values] = {"step": torch.tensor(1.0), "exp_avg": torch.ones(35)}
    placements = [Placement(Fragment("weight", "decay", SHAPE, 0, 35), values, 0)]
    writer = CheckpointWriter(tmp_path, attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
    first = snapshot(placements, optimizer, writer.spare())
    writer.save(1, first, {})
    with torch.no_grad():
        values.add_(5.0)
    second = snapshot(placements, optimizer, writer.spare())
    places = [[tensor.data_ptr() for held in states for tensor in held.tensors.values()] for states in (first, second)]
    assert places[0] == places[1]
    writer.save(2, second, {})
    writer.finish()
    for step, expected in ((1, 0.0), (2, 5.0)):
        info = find_checkpoint(tmp_path, step)
        assert info.manifest is not None
        assert torch.equal(CheckpointReader(info.directory, info.manifest).whole("weight"), torch.full(SHAPE, expected))


def test_reader_fills_tensors_of_another_kind_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.checkpoint.reader.CHUNK_ELEMENTS", 4)
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    assert info.manifest is not None
    target = torch.zeros(30, dtype=torch.float64)
    CheckpointReader(info.directory, info.manifest).read_into(Fragment("weight", "decay", SHAPE, 3, 30), MASTER, target)
    assert torch.equal(target, WHOLE[3:33].double())
