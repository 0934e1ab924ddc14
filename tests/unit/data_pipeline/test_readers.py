from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data_pipeline.config import SourceConfig
from data_pipeline.errors import CorpusError
from data_pipeline.raw_document import RawDocument
from data_pipeline.readers import read_documents


def _read(path: Path | str, **options: str) -> list[RawDocument]:
    return list(read_documents(SourceConfig(name="corpus", path=str(path), **options)))  # type: ignore[arg-type]


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.text.gz"])
def test_text_file_is_one_document_when_no_separator_is_given(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path / name, b"one\n\ntwo")
    assert _read(path) == [RawDocument(name, "corpus", b"one\n\ntwo", str(path))]


def test_text_file_is_cut_before_each_match_when_a_separator_is_given(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt", "Título\nCHAPTER 1\nx\nCHAPTER 2\ny".encode())
    documents = _read(path, document_separator="^CHAPTER")
    assert [document.data for document in documents] == [
        "Título\n".encode(),
        b"CHAPTER 1\nx\n",
        b"CHAPTER 2\ny",
    ]
    assert [document.offset for document in documents] == [0, 8, 20]
    assert [document.document_id for document in documents] == [
        "a.txt#000000",
        "a.txt#000001",
        "a.txt#000002",
    ]


def test_blank_lines_belong_to_the_first_document_when_they_stand_before_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt", b"\n\n# 1\nx\n# 2\ny")
    assert [document.data for document in _read(path, document_separator="^#")] == [
        b"\n\n# 1\nx\n",
        b"# 2\ny",
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz"])
def test_json_lines_are_documents_when_read(name: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "雪", "id": 7}), "", json.dumps({"text": "two", "id": "b"})]
    path = _write(tmp_path / name, "\n".join(lines).encode())
    assert _read(path) == [
        RawDocument(f"{name}:1", "corpus", "雪".encode(), f"{path}, line 1"),
        RawDocument(f"{name}:3", "corpus", b"two", f"{path}, line 3"),
    ]
    assert [document.document_id for document in _read(path, id_field="id")] == ["7", "b"]


def test_directory_is_read_recursively_and_sorted_when_given(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.txt", "a.jsonl", "ignored.csv", ".hidden/x.txt"):
        _write(tmp_path / name, b'{"text": "t"}')
    assert [document.document_id for document in _read(tmp_path)] == ["a.jsonl:1", "b.txt", "sub/a.txt"]
    assert [document.document_id for document in _read(tmp_path, format="text")] == ["b.txt", "sub/a.txt"]


def test_glob_names_documents_by_their_common_directory_when_given(tmp_path: Path) -> None:
    for name in ("x/a.dat", "y/a.dat"):
        _write(tmp_path / name, b"t")
    documents = _read(tmp_path / "*" / "*.dat", format="text")
    assert [document.document_id for document in documents] == ["x/a.dat", "y/a.dat"]


def test_reading_suggests_the_nearest_name_when_the_path_does_not_exist(tmp_path: Path) -> None:
    _write(tmp_path / "novels.txt", b"t")
    with pytest.raises(CorpusError) as caught:
        _read(tmp_path / "novel.txt")
    assert str(caught.value) == (
        f"Source 'corpus': {tmp_path}/novel.txt does not exist. Did you mean {tmp_path}/novels.txt?"
    )


def test_reading_lists_no_strangers_when_no_name_is_near(tmp_path: Path) -> None:
    _write(tmp_path / "system.log", b"t")
    with pytest.raises(CorpusError) as caught:
        _read(tmp_path / "novel.txt")
    assert str(caught.value) == (
        f"Source 'corpus': {tmp_path}/novel.txt does not exist. {tmp_path} is there, and holds nothing of a similar "
        "name. Check the path."
    )


def test_reading_counts_the_files_when_none_of_several_holds_a_document(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        _write(tmp_path / name, b"")
    with pytest.raises(CorpusError, match=r"no document in any of its 3 files, from .*a\.txt to .*c\.txt\."):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": ',
            {},
            r"a\.jsonl, line 2 is not JSON .*'\{\"text\":'\. Mend or remove",
        ),
        (
            "a.jsonl",
            b'{"body": "x", "id": 1}',
            {},
            r"has no key 'text'; it has 'body', 'id'\. Set text_field to one of",
        ),
        ("a.jsonl", b'{"text": 5}', {}, r"has a whole number under 'text', not a string"),
        ("a.jsonl", b"[1]", {}, r"holds a list, not an object"),
        ("a.jsonl", b'{"text": "x"}', {"id_field": "key"}, r"has no key 'key'; it has 'text'\. Set id_field"),
        ("a.jsonl", b"\n\n", {}, r"there is no document in .*a\.jsonl\. Check the path"),
        ("a.dat", b"x", {}, r"the ending of .*a\.dat does not tell its format"),
    ],
)
def test_reading_says_what_is_wrong_when_a_file_is(
    name: str, content: bytes, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=message):
        _read(_write(tmp_path / name, content), **options)


def test_reading_says_so_when_gzip_is_cut_off(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl.gz", b'{"text": "some longer text"}\n' * 50)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(CorpusError, match=r"a\.jsonl\.gz is cut off or not gzip"):
        _read(path)


def test_reading_says_so_when_a_directory_or_pattern_holds_no_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no file ending in"):
        _read(tmp_path)
    with pytest.raises(CorpusError, match="no file matches the pattern"):
        _read(tmp_path / "*.txt")
