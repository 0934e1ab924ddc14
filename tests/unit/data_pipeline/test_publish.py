from __future__ import annotations

import os
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import SealError
from data_pipeline.publish import canonical_json, file_hashes, seal, unseal, write_atomically

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text().filter(lambda key: key != "checksum"), JSON, max_size=5))
def test_unseal_returns_the_document_when_it_was_sealed(document: dict[str, object]) -> None:
    assert unseal(seal(document), "here") == document


@given(st.data())
def test_unseal_refuses_when_any_byte_is_cut_off(data: st.DataObject) -> None:
    sealed = seal({"step": 5, "files": ["a", "b"]}).rstrip()
    with pytest.raises(SealError, match=r"^m\.json is not whole JSON"):
        unseal(sealed[: data.draw(st.integers(0, len(sealed) - 1))], "m.json")


def test_unseal_shows_both_checksums_when_a_value_was_edited() -> None:
    with pytest.raises(
        SealError, match=r"^m\.json does not match its own checksum \(states \w{32}, content gives \w{32}\)"
    ):
        unseal(seal({"step": 5}).replace(b"5", b"6", 1), "m.json")


def test_unseal_says_so_when_there_is_no_checksum() -> None:
    with pytest.raises(SealError, match="carries no `checksum`"):
        unseal(b'{"step": 5}', "m.json")


def test_canonical_json_is_the_same_when_keys_come_in_another_order() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == canonical_json({"a": [1.5, None], "b": 1})


def test_canonical_json_refuses_when_a_number_is_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": float("nan")})


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 35])
def test_file_hashes_agree_with_hashes_of_the_bytes_when_size_is(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    hashes = file_hashes(tmp_path / "f", block_bytes=10)
    assert (hashes.size_bytes, hashes.hash) == (size, xxhash.xxh3_128_hexdigest(content))
    assert hashes.blocks == tuple(xxhash.xxh3_64_hexdigest(content[start : start + 10]) for start in range(0, size, 10))


def test_write_atomically_keeps_the_old_file_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_replaces_when_the_file_exists(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", b"old")
    write_atomically(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
