"""Names in object stores, and what their errors become."""

from __future__ import annotations

import errno
import pickle

import pytest
from faulty_s3 import Fault, FaultyS3

from cluster.errors import StorageError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import list_names, list_sizes, write_atomically
from cluster.storage.retry import TRANSIENT
from cluster.storage.transfer import writing

NOBODY = "http://127.0.0.1:9"


def test_parts_of_a_uri_are_those_of_a_path() -> None:
    path = ObjectPath("s3://bucket/runs//austen/")
    assert str(path) == "s3://bucket/runs/austen"
    assert (path.bucket, path.key, path.name) == ("s3://bucket", "runs/austen", "austen")
    assert path.parent == ObjectPath("s3://bucket/runs")
    assert path.parent.parent == ObjectPath("s3://bucket") == ObjectPath("s3://bucket").parent
    assert path / "a" / "b" == path.joinpath("a", "b") == path / "a/b"
    assert path.with_name("other") == ObjectPath("s3://bucket/runs/other")
    assert (path / "a/b").relative_to(path) == "a/b"
    assert path.absolute() is path


def test_path_is_not_below_one_whose_name_only_begins_alike() -> None:
    with pytest.raises(ValueError, match="is not below"):
        ObjectPath("s3://bucket/runs2/a").relative_to(ObjectPath("s3://bucket/runs"))


def test_paths_are_equal_when_pickled_and_sorted_by_name() -> None:
    first, second = ObjectPath("s3://bucket/a"), ObjectPath("s3://bucket/b")
    assert pickle.loads(pickle.dumps(first)) == first
    assert sorted({second, first, ObjectPath("s3://bucket/a/")}) == [first, second]
    assert repr(first) == "ObjectPath('s3://bucket/a')"


@pytest.mark.parametrize("uri", ["bucket/a", "s3:/bucket", "s3://", "http://host/a", "file:///a", "S3://bucket/a"])
def test_uri_is_refused_when_it_names_no_known_store(uri: str) -> None:
    with pytest.raises(StorageError, match=r"names no object store that is known: write s3://, gs://"):
        ObjectPath(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/a/../b", "s3://bucket/./a"])
def test_uri_is_refused_when_a_part_means_nothing(uri: str) -> None:
    with pytest.raises(StorageError, match=r"holds a part `\.` or `\.\.`"):
        ObjectPath(uri)


def test_what_is_there_is_told_from_what_is_not(store: ObjectPath) -> None:
    write_atomically(store / "a" / "b", b"1")
    facts = {name: (path.exists(), path.is_file(), path.is_dir()) for name, path in places(store).items()}
    assert facts == {"object": (True, True, False), "prefix": (True, False, True), "neither": (False, False, False)}
    assert (store / "a" / "b").read_text() == "1"


def places(store: ObjectPath) -> dict[str, ObjectPath]:
    return {"object": store / "a" / "b", "prefix": store / "a", "neither": store / "a" / "b" / "c"}


def test_object_is_gone_when_it_was_unlinked(store: ObjectPath) -> None:
    write_atomically(store / "a", b"1")
    (store / "a").unlink()
    (store / "a").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (store / "a").unlink()
    with pytest.raises(FileNotFoundError, match="runs/a"):
        (store / "a").read_bytes()


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_error_counts_as_transient_when_the_store_is_in_trouble(
    status: int, store: ObjectPath, server: FaultyS3
) -> None:
    with server.failing(Fault(kind="error", status=status)), pytest.raises(OSError, match=f"{status}") as raised:
        (store / "a").read_bytes()
    assert raised.value.errno in TRANSIENT
    assert raised.value.filename == str(store / "a")


@pytest.mark.parametrize("status", [401, 403])
def test_error_is_one_of_permission_when_the_store_refuses(status: int, store: ObjectPath, server: FaultyS3) -> None:
    with server.failing(Fault(kind="error", status=status)), pytest.raises(PermissionError) as raised:
        (store / "a").read_bytes()
    assert raised.value.errno not in TRANSIENT


def test_error_is_no_transient_one_when_the_request_makes_no_sense(store: ObjectPath, server: FaultyS3) -> None:
    with server.failing(Fault(kind="error", status=400)), pytest.raises(OSError, match="400") as raised:
        (store / "a").read_bytes()
    assert raised.value.errno == errno.EINVAL


def test_error_counts_as_transient_when_there_is_no_server(store: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOBODY)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9") as raised:
        ObjectPath("s3://nobody-there/a").read_bytes()
    assert raised.value.errno in TRANSIENT


def test_content_is_read_when_the_store_failed_for_a_moment(store: ObjectPath, server: FaultyS3) -> None:
    write_atomically(store / "a", b"1")
    for kind in ("error", "cut"):
        with server.failing(Fault(kind=kind, times=2)):  # type: ignore[arg-type]
            assert (store / "a").read_bytes() == b"1"


def test_missing_bucket_is_no_empty_listing(store: ObjectPath) -> None:
    for listing in (list_names, list_sizes):
        with pytest.raises(OSError, match="404") as raised:
            listing(ObjectPath("s3://no-such-bucket/a"))
        assert not isinstance(raised.value, FileNotFoundError)


@pytest.mark.parametrize("size", [1, 17 << 20])
@pytest.mark.parametrize(("status", "kind"), [(503, OSError), (403, PermissionError)])
def test_upload_ends_with_an_error_of_its_kind_when_the_store_fails(
    size: int, status: int, kind: type[OSError], store: ObjectPath, server: FaultyS3
) -> None:
    def upload() -> None:
        with writing(store / "a", size) as sink:
            sink.write(memoryview(bytes(size)))

    with server.failing(Fault(kind="error", status=status)), pytest.raises(kind, match=f"{status}") as raised:
        upload()
    assert (raised.value.errno in TRANSIENT) == (status == 503)
