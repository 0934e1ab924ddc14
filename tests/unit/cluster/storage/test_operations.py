"""Words for storage: each means the same in a directory and in an object store."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest
from faulty_s3 import Fault, FaultyS3

from cluster.errors import RunBusyError, StorageError
from cluster.storage import operations, transfer
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import (
    StoragePath,
    create_exclusively,
    each_of,
    free_bytes,
    list_names,
    list_sizes,
    make_directory,
    remove_files,
    remove_tree,
    replace,
    size_bytes,
    storage_path,
    sync_directory,
    version,
    write_atomically,
    write_if_unchanged,
)
from cluster.storage.transfer import copy_file, hashes, move_tree, writing
from data_pipeline.publish import file_hashes

PART_BYTES = 16 << 20


@pytest.fixture(params=["directory", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    """An empty directory, or an empty prefix of a store."""
    found: StoragePath = tmp_path if request.param == "directory" else request.getfixturevalue("store")
    return found


def test_place_is_a_path_or_a_uri() -> None:
    assert storage_path("runs/a") == Path("runs/a")
    assert storage_path("s3://bucket/runs/") == ObjectPath("s3://bucket/runs")
    assert storage_path(ObjectPath("gs://bucket/a")) == ObjectPath("gs://bucket/a")
    with pytest.raises(StorageError, match="names no object store that is known"):
        storage_path("ftp://bucket/a")


def test_new_content_is_read_when_it_was_written(place: StoragePath) -> None:
    write_atomically(place / "a", b"old")
    write_atomically(place / "a", b"new")
    assert (place / "a").read_bytes() == b"new"
    assert size_bytes(place / "a") == 3


def test_second_creation_is_refused_when_the_first_succeeded(place: StoragePath) -> None:
    assert create_exclusively(place / "a", b"mine")
    assert not create_exclusively(place / "a", b"yours")
    assert (place / "a").read_bytes() == b"mine"


def test_change_is_made_of_the_present_content(place: StoragePath) -> None:
    seen = []

    def change(old: bytes | None) -> bytes:
        seen.append(old)
        return (old or b"") + b"x"

    assert [replace(place / "a", change), replace(place / "a", change)] == [b"x", b"xx"]
    assert seen == [None, b"x"]


def test_change_is_made_again_when_another_process_was_faster(store: ObjectPath) -> None:
    write_atomically(store / "a", b"0")
    seen: list[bytes | None] = []

    def change(old: bytes | None) -> bytes:
        seen.append(old)
        if len(seen) == 1:
            write_atomically(store / "a", b"1")
        return (old or b"") + b"x"

    assert replace(store / "a", change) == b"1x"
    assert seen == [b"0", b"1"]


def test_change_is_made_again_when_another_process_created_the_object(store: ObjectPath) -> None:
    seen: list[bytes | None] = []

    def change(old: bytes | None) -> bytes:
        seen.append(old)
        if len(seen) == 1:
            write_atomically(store / "a", b"theirs")
        return b"mine"

    assert replace(store / "a", change) == b"mine"
    assert seen == [None, b"theirs"]


def test_object_is_written_when_nobody_changed_it(place: StoragePath) -> None:
    assert write_if_unchanged(place / "a", b"1", version(place / "a"))
    assert write_if_unchanged(place / "a", b"2", version(place / "a"))
    assert (place / "a").read_bytes() == b"2"


@pytest.mark.parametrize("before", [None, b"0"])
def test_object_is_not_written_when_another_process_changed_it(before: bytes | None, store: ObjectPath) -> None:
    if before is not None:
        write_atomically(store / "a", before)
    seen = version(store / "a")
    write_atomically(store / "a", b"theirs")
    assert not write_if_unchanged(store / "a", b"mine", seen)
    assert (store / "a").read_bytes() == b"theirs"


def test_object_is_not_written_when_another_process_deleted_it(store: ObjectPath) -> None:
    write_atomically(store / "a", b"0")
    seen = version(store / "a")
    (store / "a").unlink()
    assert not write_if_unchanged(store / "a", b"mine", seen)
    assert not (store / "a").exists()


def test_names_are_those_that_lie_directly_below(place: StoragePath) -> None:
    make_directory(place / "b" / "c")
    for name in ("b/c/d", "b/e", "z", "a"):
        write_atomically(place / name, b"x")
    assert list_names(place) == ["a", "b", "z"]
    assert list_names(place / "b") == ["c", "e"]


def test_listing_fails_when_there_is_nothing(place: StoragePath) -> None:
    with pytest.raises(FileNotFoundError):
        list_names(place / "nothing")


def test_sizes_are_listed_by_names_at_any_depth(store: ObjectPath, server: FaultyS3) -> None:
    for name in ("a/b", "a/c d/é", "ab"):
        write_atomically(store / name, b"x" * len(name))
    server.asked()
    assert list_sizes(store / "a") == {"b": 3, "c d/é": 7}
    assert server.asked() == ["LIST runs/a/"]
    assert list_sizes(store / "nothing") == {}


@pytest.mark.slow
def test_more_than_a_page_is_listed_and_removed(store: ObjectPath, server: FaultyS3) -> None:
    each_of(range(1005), lambda number: write_atomically(store / f"{number}", b""), at=store)
    server.asked()
    assert len(list_sizes(store)) == 1005
    assert len(server.asked()) == 2
    remove_tree(store)
    assert list_sizes(store) == {}


def test_bucket_is_listed_and_never_removed(store: ObjectPath) -> None:
    write_atomically(store / "a", b"x")
    bucket = ObjectPath(store.bucket)
    assert list_sizes(bucket) == {"runs/a": 1}
    assert list_names(bucket) == ["runs"]
    assert bucket.is_dir()
    with pytest.raises(ValueError, match="is a whole bucket"):
        remove_tree(bucket)


def test_each_is_done_in_order(place: StoragePath) -> None:
    assert each_of([3, 1, 2], lambda number: number * 2, at=place) == [6, 2, 4]


def test_files_are_removed_whether_they_are_there_or_not(place: StoragePath) -> None:
    for name in ("a", "b", "c"):
        write_atomically(place / name, b"x")
    remove_files([place / "a", place / "nothing", place / "c"])
    assert list_names(place) == ["b"]
    remove_files([])


def test_several_objects_are_removed_in_one_request(store: ObjectPath, server: FaultyS3) -> None:
    for name in ("a", "b"):
        write_atomically(store / name, b"x")
    server.asked()
    remove_files([store / "a", store / "b"])
    assert len(server.asked()) == 1


def test_tree_is_removed_and_its_neighbour_stays(place: StoragePath) -> None:
    make_directory(place / "a" / "b")
    write_atomically(place / "a" / "b" / "c", b"x")
    write_atomically(place / "ab", b"x")
    remove_tree(place / "a")
    remove_tree(place / "nothing")
    assert list_names(place) == ["ab"]


def test_tree_is_moved_whole(place: StoragePath) -> None:
    make_directory(place / "a" / "b")
    write_atomically(place / "a" / "b" / "c", b"1")
    write_atomically(place / "a" / "run.json", b"2")
    move_tree(place / "a", place / "z", last="run.json")
    assert list_names(place) == ["z"]
    assert (place / "z" / "b" / "c").read_bytes() == b"1"
    assert (place / "z" / "run.json").read_bytes() == b"2"


def test_tree_is_moved_with_its_mark_last_to_come_and_first_to_go(store: ObjectPath, server: FaultyS3) -> None:
    for name in ("a", "run.json", "z"):
        write_atomically(store / "old" / name, b"x")
    server.asked()
    move_tree(store / "old", store / "new", last="run.json")
    asked = server.asked()
    copies = [line for line in asked if line.startswith("PUT")]
    assert copies[-1] == "PUT runs/new/run.json"
    assert len(copies) == 3
    assert len(asked) == 1 + 3 + 2


def test_what_stays_is_not_moved(store: ObjectPath) -> None:
    for name in ("lease/1", "run.json"):
        write_atomically(store / "old" / name, b"x")
    move_tree(store / "old", store / "new", last="run.json", staying=("lease",))
    assert list(list_sizes(store / "old")) == ["lease/1"]
    assert list(list_sizes(store / "new")) == ["run.json"]


@pytest.mark.parametrize("size", [0, 5, PART_BYTES + 3])
def test_copy_has_the_bytes_whichever_way_it_goes(size: int, store: ObjectPath, tmp_path: Path) -> None:
    data = os.urandom(size)
    write_atomically(tmp_path / "a", data)
    copy_file(tmp_path / "a", store / "b")
    copy_file(store / "b", store / "c")
    copy_file(store / "c", tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == data


def test_bytes_do_not_pass_through_this_process_when_a_store_copies(store: ObjectPath, server: FaultyS3) -> None:
    write_atomically(store / "a", b"x")
    server.asked()
    copy_file(store / "a", store / "b")
    assert server.asked() == ["HEAD runs/a", "PUT runs/b"]


def test_bytes_pass_through_when_the_object_is_too_long_for_one_request(
    store: ObjectPath, server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_COPIED_WHOLE_BYTES", 2)
    write_atomically(store / "a", b"xyz")
    server.asked()
    copy_file(store / "a", store / "b")
    assert "GET runs/a" in server.asked()
    assert (store / "b").read_bytes() == b"xyz"


def test_copy_fails_when_there_is_no_source(place: StoragePath) -> None:
    with pytest.raises(FileNotFoundError):
        copy_file(place / "nothing", place / "a")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 7])
def test_hashes_are_those_of_the_file(size: int, store: ObjectPath, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    write_atomically(store / "a", data)
    assert hashes(store / "a") == hashes(tmp_path / "a") == file_hashes(tmp_path / "a")


@pytest.mark.parametrize("count", [0, 3, 17])
def test_large_file_is_written_in_pieces(count: int, place: StoragePath) -> None:
    piece = os.urandom(1 << 20)
    with writing(place / "a", count << 20) as sink:
        for _ in range(count):
            sink.write(memoryview(piece))
    assert (place / "a").read_bytes() == piece * count


def test_memory_may_be_used_again_when_a_piece_was_written(store: ObjectPath) -> None:
    buffer = bytearray(b"a" * 1000)
    with writing(store / "a", 2000) as sink:
        sink.write(memoryview(buffer))
        buffer[:] = b"b" * 1000
        sink.write(memoryview(buffer))
    assert (store / "a").read_bytes() == b"a" * 1000 + b"b" * 1000


def test_no_object_is_seen_when_it_was_not_written_to_its_end(store: ObjectPath) -> None:
    def write_and_fail() -> None:
        with writing(store / "a", 20 << 20) as sink:
            sink.write(memoryview(bytes(20 << 20)))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert not (store / "a").exists()


def test_directories_cost_a_store_no_request(store: ObjectPath, server: FaultyS3) -> None:
    make_directory(store / "a")
    sync_directory(store / "a")
    assert free_bytes(store) is None
    assert server.asked() == []


def test_free_room_is_known_in_a_file_system(tmp_path: Path) -> None:
    found = free_bytes(tmp_path)
    assert found is not None
    assert found > 0


def test_replacement_is_given_up_when_the_store_always_says_that_it_has_changed(
    store: ObjectPath, server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    patience = dataclasses.replace(operations._BETWEEN_ROUNDS, sleep=waits.append, fraction=lambda: 0.0)
    monkeypatch.setattr(operations, "_BETWEEN_ROUNDS", patience)
    write_atomically(store / "a", b"0")
    with (
        server.failing(Fault(kind="error", request="PUT", status=412, times=100)),
        pytest.raises(OSError, match="each of the 20 times") as raised,
    ):
        replace(store / "a", lambda old: b"1")
    assert (raised.value.errno, raised.value.filename) == (errno.EBUSY, str(store / "a"))
    assert (len(waits), waits[:3], waits[-1]) == (19, [0.02, 0.04, 0.08], 1.0)


def test_nothing_is_removed_when_a_tree_is_no_longer_ours_once_it_is_copied(store: ObjectPath) -> None:
    for name in ("a", "run.json"):
        write_atomically(store / "old" / name, b"x")

    def lost() -> None:
        assert sorted(list_sizes(store / "new")) == ["a", "run.json"]
        raise RunBusyError("it was taken over")

    with pytest.raises(RunBusyError):
        move_tree(store / "old", store / "new", last="run.json", still_ours=lost)
    assert sorted(list_sizes(store / "old")) == ["a", "run.json"]


def test_each_request_that_removes_is_asked_for_when_a_tree_is_moved(
    store: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_REMOVED_AT_ONCE", 2)
    for name in ("a", "b", "c", "run.json"):
        write_atomically(store / "old" / name, b"x")
    left: list[list[str]] = []
    move_tree(
        store / "old", store / "new", last="run.json", still_ours=lambda: left.append(sorted(list_sizes(store / "old")))
    )
    assert left == [["a", "b", "c", "run.json"], ["a", "b", "c"], ["c"]]
