"""Checkpoints in an object store: in which order they come to be, and what every request costs."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoints import WHOLE, save, states
from faulty_s3 import Fault, FaultyS3

from cluster.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    WriterHooks,
    clean_leftovers,
    find_checkpoint,
    list_checkpoints,
    newest_verified,
    reject,
    verify,
)
from cluster.checkpoint import writer as writer_module
from cluster.checkpoint.manifest import Manifest, step_directory
from cluster.config import CheckpointConfig
from cluster.engines.protocol import MASTER, Fragment
from cluster.errors import CheckpointError, StorageError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, list_sizes, write_atomically
from cluster.storage.retry import Backoff

STEP_1 = "runs/tiny/checkpoints/step-00000001"
MANIFEST = f"PUT {STEP_1}/MANIFEST.json"
QUICK = Backoff(tries=3, sleep=lambda seconds: None)


def test_checkpoint_is_found_whole_when_it_was_saved(store: ObjectPath) -> None:
    save(store, 1)
    found = newest_verified(store)
    assert found is not None
    assert found.manifest is not None
    assert torch.equal(CheckpointReader(found.directory, found.manifest).whole("weight").flatten(), WHOLE)
    assert sorted(list_sizes(store)) == [
        f"checkpoints/step-00000001/{name}"
        for name in ("MANIFEST.json", "attempt-00001/rank-00000.safetensors", "attempt-00001/rank-00001.safetensors")
    ]


def test_manifest_is_put_last_and_by_one_request(store: ObjectPath, server: FaultyS3) -> None:
    save(store, 1, cuts=(0, 12, 20, 35))
    puts = [line for line in server.asked() if line.startswith(("PUT", "POST"))]
    assert puts[6] == MANIFEST
    assert sorted(puts[:6]) == sorted(
        f"PUT {STEP_1}/attempt-00001/rank-{rank:05d}.{kind}" for rank in range(3) for kind in ("json", "safetensors")
    )
    assert [line for line in puts[7:] if line.startswith("PUT")] == []


def test_index_is_put_once_the_tensors_are(store: ObjectPath, server: FaultyS3) -> None:
    save(store, 1, cuts=(0, 35))
    puts = [line for line in server.asked() if line.startswith("PUT")]
    assert [line.rsplit("/", 1)[1] for line in puts] == ["rank-00000.safetensors", "rank-00000.json", "MANIFEST.json"]


def test_save_takes_three_requests_a_rank_and_a_few(store: ObjectPath, server: FaultyS3) -> None:
    save(store, 1, cuts=(0, 12, 35))
    server.asked()
    save(store, 2, cuts=(0, 12, 35))
    asked = [line for line in server.asked() if not line.startswith("LIST runs/tiny/checkpoints/step")]
    # 3 a rank; is it published, publish; marks and indexes removed; retention: a listing, two manifests
    assert len(asked) == 3 * 2 + 2 + 1 + 3, asked


@pytest.mark.parametrize("count", [1, 4])
def test_listing_takes_one_request_and_one_for_each_manifest(count: int, store: ObjectPath, server: FaultyS3) -> None:
    for step in range(1, count + 1):
        save(store, step, policy=CheckpointConfig(keep_last=9))
    server.asked()
    assert [info.step for info in list_checkpoints(store)] == list(range(1, count + 1))
    assert len(server.asked()) == 1 + count


def test_restart_asks_for_the_newest_only_when_there_are_many(store: ObjectPath, server: FaultyS3) -> None:
    for step in range(1, 5):
        save(store, step, cuts=(0, 35), policy=CheckpointConfig(keep_last=9))
    server.asked()
    assert find_checkpoint(store).step == 4
    assert find_checkpoint(store, 2).step == 2
    assert len(server.asked()) == 2 * 2
    assert newest_verified(store) is not None
    assert len(server.asked()) == 2 + 2  # listing, manifest; length and bytes of its one file
    assert clean_leftovers(store, 2) == []
    assert len(server.asked()) == 1


def test_permanent_checkpoints_are_not_asked_for_when_retention_passes_them(
    store: ObjectPath, server: FaultyS3
) -> None:
    policy = CheckpointConfig(every_steps=1, keep_last=1, keep_every_steps=1)
    for step in range(1, 5):
        save(store, step, cuts=(0, 35), policy=policy)
    asked = server.asked()
    assert [info.step for info in list_checkpoints(store)] == [1, 2, 3, 4]
    manifests = [line for line in asked if line.startswith("GET") and line.endswith("MANIFEST.json")]
    assert len(manifests) == 4  # at each save the one it has made, to know that one is kept


@pytest.mark.parametrize(
    "request_pattern",
    [
        r"PUT .*rank-00000\.safetensors",
        r"PUT .*rank-00001\.json",
        r"PUT .*MANIFEST",
        r"GET .*rank-00001\.json",
        r"GET .*list-type",
        r"HEAD ",
        r"POST ",
    ],
)
@pytest.mark.parametrize("kind", ["error", "cut", "lost"])
def test_checkpoint_is_whole_when_the_store_failed_for_a_moment(
    kind: Any, request_pattern: str, store: ObjectPath, server: FaultyS3
) -> None:
    with server.failing(Fault(kind=kind, request=request_pattern, times=5)):
        save(store, 1, backoff=QUICK)
    verify(find_checkpoint(store))


def test_checkpoint_is_given_up_and_removed_when_the_store_goes_on_failing(store: ObjectPath, server: FaultyS3) -> None:
    with (
        server.failing(Fault(kind="error", request=r"PUT .*rank-00000\.json", status=500)),
        pytest.raises(StorageError, match=r"could not be written to s3://.* 500 .*Earlier checkpoints are whole"),
    ):
        save(store, 1, cuts=(0, 35), backoff=QUICK)
    assert list_sizes(store) == {}


def test_checkpoint_is_given_up_at_once_when_the_store_refuses(store: ObjectPath, server: FaultyS3) -> None:
    with (
        server.failing(Fault(kind="error", request="PUT", status=403)),
        pytest.raises(StorageError, match="the store refuses it"),
    ):
        save(store, 1, cuts=(0, 35), backoff=QUICK)
    assert len([line for line in server.asked() if line.startswith("PUT")]) == 1


def test_manifest_of_another_attempt_stays_when_it_was_published_in_between(store: ObjectPath) -> None:
    """The lease is looked at, this process stands still, another attempt publishes the same step."""

    def other_attempt() -> None:
        writer = CheckpointWriter(store, attempt=2, rank=0, world_size=1, policy=CheckpointConfig())
        writer.save(1, states(0, 35), {})
        writer.finish()

    with pytest.raises(StorageError, match="another attempt published a checkpoint of this step in the meantime"):
        save(store, 1, cuts=(0, 35), hooks=WriterHooks(before_publish=other_attempt))
    info = find_checkpoint(store)
    verify(info)
    assert info.manifest is not None
    assert info.manifest.attempt == 2
    assert {name.split("/")[2] for name in list_sizes(store)} == {"MANIFEST.json", "attempt-00002"}


def test_rejected_checkpoint_is_replaced_when_its_step_is_saved_again(store: ObjectPath) -> None:
    save(store, 1)
    reject(find_checkpoint(store), "it gave another loss", kind="loss")
    assert list_checkpoints(store)[0].rejection is not None
    save(store, 1, attempt=2)
    verify(find_checkpoint(store, 1))
    assert {name.split("/")[2] for name in list_sizes(store)} == {"MANIFEST.json", "attempt-00002"}


def test_other_ranks_are_not_waited_for_when_one_has_failed(store: ObjectPath) -> None:
    first = CheckpointWriter(
        store,
        attempt=1,
        rank=0,
        world_size=2,
        policy=CheckpointConfig(),
        hooks=WriterHooks(agree=lambda problem: problem or "rank 1: the storage is full"),
    )
    first.save(1, states(0, 12), {})
    with pytest.raises(StorageError, match="rank 1: the storage is full"):
        first.finish()
    assert list_checkpoints(store) == []


def test_indexes_are_waited_for_by_listings(store: ObjectPath, server: FaultyS3) -> None:
    writers = [
        CheckpointWriter(store, attempt=1, rank=rank, world_size=3, policy=CheckpointConfig()) for rank in range(3)
    ]
    writers[0].save(1, states(0, 12), {})
    listed = threading.Event()
    while not listed.is_set():
        if any(line.startswith("LIST") for line in server.asked()):
            listed.set()
    for rank, (low, high) in enumerate(((12, 20), (20, 35)), start=1):
        writers[rank].save(1, states(low, high - low), {})
    for writer in reversed(writers):
        writer.finish()
    verify(find_checkpoint(store))


def test_each_rank_of_another_topology_takes_the_ranges_it_needs(
    store: ObjectPath, server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.storage.source.WINDOW_BYTES", 64)
    save(store, 1, cuts=(0, 12, 20, 35))
    info = find_checkpoint(store)
    assert info.manifest is not None
    server.asked()
    for low, high in ((0, 9), (9, 30), (30, 35)):
        reader = CheckpointReader(info.directory, info.manifest)
        part = reader.read(Fragment("weight", "decay", (7, 5), low, high - low), MASTER)
        assert torch.equal(part, WHOLE[low:high])
        files = {line.rsplit("/", 1)[1] for line in server.asked()}
        wanted = [rank for rank, cut in enumerate(((0, 12), (12, 20), (20, 35))) if low < cut[1] and cut[0] < high]
        assert files == {f"rank-{rank:05d}.safetensors" for rank in wanted}


def test_leftovers_of_attempts_that_died_are_removed_and_nothing_else(store: ObjectPath) -> None:
    save(store, 1)
    for name in ("1/attempt-00002/rank-00000.json", "2/attempt-00001/a", "3/attempt-00003/a", "4/REJECTED.json"):
        step, _, rest = name.partition("/")
        write_atomically(step_directory(store, int(step)) / rest, b"{}")
    write_atomically(store / "checkpoints" / "notes.txt", b"not ours")
    before = set(list_sizes(store))
    removed = clean_leftovers(store, attempt=3)
    assert [path.relative_to(store) for path in removed] == [  # type: ignore[arg-type]
        "checkpoints/step-00000001/attempt-00002",
        "checkpoints/step-00000002/attempt-00001",
    ]
    gone = {name.removeprefix("checkpoints/step-0000000") for name in before - set(list_sizes(store))}
    assert gone == {"1/attempt-00002/rank-00000.json", "2/attempt-00001/a", "4/REJECTED.json"}
    verify(find_checkpoint(store))


def test_mark_of_the_manifest_before_is_removed_when_leftovers_are(store: ObjectPath) -> None:
    save(store, 1)
    reject(find_checkpoint(store), "it gave another loss", kind="loss")
    left = (step_directory(store, 1) / "REJECTED.json").read_bytes()
    save(store, 1)
    write_atomically(step_directory(store, 1) / "REJECTED.json", left)
    assert find_checkpoint(store).step == 1
    assert clean_leftovers(store, attempt=2) == [step_directory(store, 1) / "REJECTED.json"]


def test_leftovers_stay_when_the_store_does_not_answer(store: ObjectPath, server: FaultyS3) -> None:
    write_atomically(step_directory(store, 2) / "attempt-00001" / "a", b"x")
    with server.failing(Fault(kind="error")):
        assert clean_leftovers(store, attempt=3) == []
    assert len(list_sizes(store)) == 1


def test_old_checkpoint_is_none_any_more_when_the_rest_of_it_cannot_be_removed(
    store: ObjectPath, server: FaultyS3
) -> None:
    policy = CheckpointConfig(keep_last=1)
    save(store, 1, policy=policy)
    with server.failing(Fault(kind="error", request=r"prefix=.*step-00000001", status=403)):
        save(store, 2, policy=policy)
    assert [info.step for info in list_checkpoints(store)] == [2]
    assert len([name for name in list_sizes(store) if "step-00000001" in name]) == 2
    clean_leftovers(store, attempt=2)
    assert not [name for name in list_sizes(store) if "step-00000001" in name]


def test_old_checkpoints_are_removed_when_retention_passes_them(store: ObjectPath) -> None:
    for step in range(1, 5):
        save(store, step, policy=CheckpointConfig(keep_last=2))
    assert {name.split("/")[1] for name in list_sizes(store)} == {"step-00000003", "step-00000004"}


def test_manifest_is_read_back_as_it_was_sealed(store: ObjectPath) -> None:
    save(store, 1)
    manifest = Manifest.read(step_directory(store, 1) / "MANIFEST.json")
    assert manifest == find_checkpoint(store).manifest
    assert manifest.next_batch_loss == 2.5


def test_checkpoint_is_saved_when_whose_the_run_is_cannot_be_read_for_a_moment(store: ObjectPath) -> None:
    errors = [errno.EREMOTEIO, errno.ECONNRESET]

    def unsteady() -> None:
        if errors:
            raise OSError(errors.pop(), "the store does not answer")

    save(store, 1, cuts=(0, 35), hooks=WriterHooks(check_ours=unsteady), backoff=QUICK)
    verify(find_checkpoint(store))


def test_record_is_synced_once_when_that_fails(store: ObjectPath) -> None:
    """A second fsync after one that failed proves nothing."""
    tried: list[int] = []

    def failing() -> None:
        tried.append(1)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match="the run's record is not durable: Input/output error"):
        save(store, 1, cuts=(0, 35), hooks=WriterHooks(before_publish=failing), backoff=QUICK)
    assert tried == [1]
    assert list_checkpoints(store) == []


def superseded_after(looks: int, then: Callable[[], object] = lambda: None) -> WriterHooks:
    """The attempt is still the newest at so many looks; then this happens, and it is not."""
    seen: list[int] = []

    def look() -> None:
        seen.append(1)
        if len(seen) == looks:
            then()
        elif len(seen) > looks:
            raise CheckpointError("another driver or attempt 2 has taken over from attempt 1")

    return WriterHooks(check_ours=look, on_saved=lambda event: pytest.fail("it was announced"))


def test_nothing_is_left_when_the_attempt_was_superseded_before_its_manifest_was_put(store: ObjectPath) -> None:
    """The lease is looked at, this process stands still, and the next attempt removes what is not published."""
    hooks = superseded_after(1, then=lambda: clean_leftovers(store, 2))
    with pytest.raises(StorageError, match="attempt 2 has taken over"):
        save(store, 1, cuts=(0, 35), hooks=hooks, backoff=QUICK)
    assert list_sizes(store) == {}


def test_manifest_of_the_successor_stays_when_the_superseded_attempt_takes_its_own_back(
    store: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks, original = superseded_after(1), writer_module.write_if_unchanged

    def and_then_the_successor(path: StoragePath, data: bytes, version: Any) -> bool:
        written = original(path, data, version)
        write_atomically(path, b"theirs")
        return written

    monkeypatch.setattr(writer_module, "write_if_unchanged", and_then_the_successor)
    with pytest.raises(StorageError, match="attempt 2 has taken over"):
        save(store, 1, cuts=(0, 35), hooks=hooks, backoff=QUICK)
    assert (step_directory(store, 1) / "MANIFEST.json").read_bytes() == b"theirs"


def test_checkpoint_stays_when_whose_the_run_is_cannot_be_read_once_it_is_published(
    store: ObjectPath, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        if len(looks) > 1:
            raise OSError(errno.EREMOTEIO, "the store does not answer")

    save(store, 1, cuts=(0, 35), hooks=WriterHooks(check_ours=look), backoff=QUICK)
    verify(find_checkpoint(store))
    assert "whether step 1 was published in time is unknown: the store does not answer" in caplog.messages
