"""Ranges of bytes out of files and objects."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from faulty_s3 import FaultyS3

from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, write_atomically
from cluster.storage.source import WINDOW_BYTES, ObjectSource, ReadAhead
from cluster.storage.transfer import open_for_reading

DATA = os.urandom(20 << 20)


@pytest.fixture(params=["file", "object"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    """20 MiB."""
    place: StoragePath = tmp_path if request.param == "file" else request.getfixturevalue("store")
    write_atomically(place / "a", DATA)
    return place / "a"


def read(path: StoragePath, position: int, length: int) -> bytes:
    target = bytearray(length)
    count = open_for_reading(path).read_into(memoryview(target), position)
    return bytes(target[:count])


@pytest.mark.parametrize(("position", "length"), [(0, 10), (5, 1), (3, 17 << 20), (8 << 20, 8 << 20)])
def test_range_has_the_bytes_of_its_place(position: int, length: int, path: StoragePath) -> None:
    assert read(path, position, length) == DATA[position : position + length]


def test_range_is_shorter_when_the_file_ends(path: StoragePath) -> None:
    assert open_for_reading(path).size_bytes == len(DATA)
    assert read(path, len(DATA) - 3, 10) == DATA[-3:]
    assert read(path, len(DATA), 10) == b""
    assert read(path, len(DATA) + 5, 10) == b""


def test_nothing_is_opened_when_there_is_nothing(path: StoragePath) -> None:
    with pytest.raises(FileNotFoundError):
        open_for_reading(path.parent / "nothing")


def test_error_is_transient_when_the_object_was_replaced_while_it_was_read(store: ObjectPath) -> None:
    write_atomically(store / "a", b"old bytes")
    source = ObjectSource(store / "a")
    write_atomically(store / "a", b"new bytes")
    with pytest.raises(OSError, match="replaced while it was read") as raised:
        source.read_into(memoryview(bytearray(9)), 0)
    assert raised.value.errno == errno.ESTALE


def test_small_reads_in_order_are_served_by_few_requests(store: ObjectPath, server: FaultyS3) -> None:
    write_atomically(store / "a", DATA[: 9 << 20])
    ahead, source = ReadAhead(), ObjectSource(store / "a")
    server.asked()
    target = bytearray(1000)
    for position in range(0, 9 << 20, 50_000):
        count = ahead.read_into(source, memoryview(target), position)
        assert target[:count] == DATA[: 9 << 20][position : position + 1000]
    assert len(server.asked()) == 3


def test_large_reads_go_past_the_window(store: ObjectPath, server: FaultyS3) -> None:
    write_atomically(store / "a", DATA[: 4 << 20])
    ahead, source = ReadAhead(), ObjectSource(store / "a")
    target = bytearray(WINDOW_BYTES // 2)
    server.asked()
    for _ in range(2):
        ahead.read_into(source, memoryview(target), 1)
    assert target == DATA[1 : 1 + len(target)]
    assert len(server.asked()) == 2


def test_windows_are_bounded_when_many_sources_are_read(store: ObjectPath) -> None:
    ahead = ReadAhead(windows=2)
    for name in "abc":
        write_atomically(store / name, name.encode() * 10)
    sources = [ObjectSource(store / name) for name in "abc"]
    for source, name in [*zip(sources, b"abc", strict=True)] * 2:
        target = bytearray(4)
        assert ahead.read_into(source, memoryview(target), 3) == 4
        assert target == bytes([name]) * 4
        assert len(ahead._kept) <= 2


def test_files_are_read_as_they_are_when_read_ahead(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    ahead, source = ReadAhead(), open_for_reading(tmp_path / "a")
    target = bytearray(3)
    assert ahead.read_into(source, memoryview(target), 1) == 3
    (tmp_path / "a").write_bytes(b"54321")
    ahead.read_into(source, memoryview(target), 1)
    assert target == b"432"


def test_end_of_the_object_is_told_when_read_ahead(store: ObjectPath) -> None:
    write_atomically(store / "a", b"12345")
    target = bytearray(4)
    assert ReadAhead().read_into(ObjectSource(store / "a"), memoryview(target), 3) == 2
    assert target[:2] == b"45"
