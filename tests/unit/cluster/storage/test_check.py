"""What a storage is asked before a run begins, and what a person is told where it does not do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faulty_s3 import Fault, FaultyS3

from cluster.errors import StorageError
from cluster.storage import check as storage_check
from cluster.storage.check import account_of, prepare_storage, reachable_or_unknown
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import storage_path, write_atomically
from cluster.storage.retry import Backoff


def test_nothing_is_left_of_the_proof_when_the_store_has_it_all(bucket: str) -> None:
    storage = ObjectPath(f"{bucket}/runs")
    prepare_storage(storage)
    assert not storage.exists()


def test_store_is_refused_when_it_creates_what_exists(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_check, "create_exclusively", lambda path, data: not write_atomically(path, data))
    with pytest.raises(StorageError, match=r"creates an object that exists already.*two drivers could write"):
        prepare_storage(ObjectPath(f"{bucket}/runs"))


def test_store_is_refused_when_it_replaces_what_has_changed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_check, "replace", lambda path, change: write_atomically(path, change(b"first")))
    with pytest.raises(StorageError, match="replaces an object that has changed"):
        prepare_storage(ObjectPath(f"{bucket}/runs"))


def test_bucket_is_named_when_there_is_none(bucket: str) -> None:
    with pytest.raises(
        StorageError, match=r"storage s3://no-such-bucket/runs cannot .*there is no bucket s3://no-such"
    ):
        prepare_storage(storage_path("s3://no-such-bucket/runs"))


def test_endpoint_is_named_when_the_store_does_not_answer() -> None:
    error = OSError(121, "error sending request", "s3://bucket/runs")
    assert "the store does not answer (error sending request)" in account_of(ObjectPath("s3://bucket/runs"), error)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Error performing PUT http://169.254.169.254/latest/api/token", "no credentials were found"),
        ("the store refuses it (403 Forbidden)", r"The credentials are wrong, or may not list"),
    ],
)
def test_remedy_fits_when_the_store_refuses(said: str, told: str) -> None:
    assert told in account_of(ObjectPath("s3://bucket/runs"), PermissionError(13, said, "s3://bucket/runs"))


def test_submitter_is_told_when_there_is_no_bucket(bucket: str) -> None:
    with pytest.raises(StorageError, match="there is no bucket"):
        reachable_or_unknown("s3://no-such-bucket/runs")
    assert reachable_or_unknown(f"{bucket}/runs") is None


def test_submitter_without_credentials_goes_on_when_the_job_may_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: ObjectPath, data: bytes) -> bool:
        raise PermissionError(13, "403", str(path))

    monkeypatch.setattr(storage_check, "create_exclusively", refuse)
    assert "credentials are wrong" in (reachable_or_unknown("s3://bucket/runs") or "")


def test_submitter_looks_at_no_directory_when_nodes_alone_see_it(tmp_path: Path) -> None:
    assert reachable_or_unknown(str(tmp_path / "seen-by-nodes-only")) is None
    assert not (tmp_path / "seen-by-nodes-only").exists()


def test_remedy_is_given_when_the_store_replaces_nothing(store: ObjectPath, server: FaultyS3) -> None:
    app, inner = server.app, server.app._inner

    def refusing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not environ.get("HTTP_IF_MATCH"):
            return inner(environ, start_response)
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("412 Precondition Failed", [("Content-Length", "0")])
        return []

    app._inner = refusing
    try:
        with pytest.raises(StorageError, match=r"refuses to replace an object that has not changed.* Use a store that"):
            prepare_storage(store)
    finally:
        app._inner = inner


def test_successor_waits_for_the_store_when_it_does_not_answer(
    store: ObjectPath, server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(storage_check, "Backoff", partial(Backoff, sleep=waits.append))
    with server.failing(Fault(kind="error", request="PUT", times=4)), pytest.raises(StorageError, match="503"):
        prepare_storage(store)
    with server.failing(Fault(kind="error", request="PUT", times=4)):
        prepare_storage(store, patient=True)
    assert len(waits) == 1
