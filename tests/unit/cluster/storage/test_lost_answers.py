"""Requests that a store carries out without saying so: whoever repeats them finds his own work, not somebody else's."""

from __future__ import annotations

import os

import pytest
from faulty_s3 import Fault, FaultyS3

from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import (
    create_exclusively,
    list_sizes,
    remove_files,
    remove_tree,
    replace,
    version,
    write_atomically,
    write_if_unchanged,
)
from cluster.storage.retry import TRANSIENT
from cluster.storage.transfer import copy_file, writing


def lost(request: str, times: int | None = 1) -> Fault:
    return Fault(kind="lost", request=request, times=times)


def test_creation_is_ours_when_its_answer_was_lost(store: ObjectPath, server: FaultyS3) -> None:
    with server.failing(lost("PUT")):
        assert create_exclusively(store / "a", b"mine")
    assert not create_exclusively(store / "a", b"theirs")


def test_replacement_is_made_once_when_its_answer_was_lost(store: ObjectPath, server: FaultyS3) -> None:
    write_atomically(store / "a", b"0")
    with server.failing(lost("PUT")):
        assert replace(store / "a", lambda old: (old or b"") + b"x") == b"0x"
    assert (store / "a").read_bytes() == b"0x"


@pytest.mark.parametrize("before", [None, b"0"])
def test_conditional_write_is_ours_when_its_answer_was_lost(
    before: bytes | None, store: ObjectPath, server: FaultyS3
) -> None:
    if before is not None:
        write_atomically(store / "a", before)
    seen = version(store / "a")
    with server.failing(lost("PUT")):
        assert write_if_unchanged(store / "a", b"mine", seen)


UNKNOWN_UPLOAD = Fault(kind="error", request="POST .*uploadId", status=404, times=1)


@pytest.mark.parametrize("then", [(), (UNKNOWN_UPLOAD,)], ids=["it is told again", "the upload is no more"])
def test_upload_is_whole_when_the_answer_to_its_end_was_lost(
    then: tuple[Fault, ...], store: ObjectPath, server: FaultyS3
) -> None:
    data = os.urandom(17 << 20)
    before = server.app.struck
    with server.failing(lost("POST .*uploadId"), *then), writing(store / "a", len(data)) as sink:
        sink.write(memoryview(data))
    assert server.app.struck - before == 1 + len(then)
    assert (store / "a").read_bytes() == data


def test_error_is_transient_when_the_upload_is_no_more_and_there_is_no_object(
    store: ObjectPath, server: FaultyS3
) -> None:
    def upload() -> None:
        with writing(store / "a", 17 << 20) as sink:
            sink.write(memoryview(bytes(17 << 20)))

    with server.failing(UNKNOWN_UPLOAD), pytest.raises(OSError, match="no such upload") as raised:
        upload()
    assert raised.value.errno in TRANSIENT


def test_removals_are_done_when_their_answers_were_lost(store: ObjectPath, server: FaultyS3) -> None:
    for name in ("a", "b/c", "d"):
        write_atomically(store / name, b"x")
    with server.failing(lost("DELETE|POST", times=1)):
        remove_files([store / "a"])
    with server.failing(lost("DELETE|POST", times=1)):
        remove_tree(store / "b")
    assert list(list_sizes(store)) == ["d"]


def test_copy_is_made_when_its_answer_was_lost(store: ObjectPath, server: FaultyS3) -> None:
    write_atomically(store / "a", b"x")
    with server.failing(lost("PUT")):
        copy_file(store / "a", store / "b")
    assert (store / "b").read_bytes() == b"x"


def test_nothing_is_claimed_when_every_answer_is_lost_and_the_error_is_raised(
    store: ObjectPath, server: FaultyS3
) -> None:
    with server.failing(lost("PUT", times=None)), pytest.raises(OSError, match="503"):
        write_atomically(store / "a", b"x")


def test_rest_stays_and_no_error_is_raised_when_a_tree_cannot_be_removed(store: ObjectPath, server: FaultyS3) -> None:
    write_atomically(store / "a", b"x")
    with server.failing(Fault(kind="error", status=403)):
        remove_tree(store)
    assert list(list_sizes(store)) == ["a"]
