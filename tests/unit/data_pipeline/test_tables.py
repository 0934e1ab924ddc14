from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import SourceConfig
from data_pipeline.errors import CorpusError
from data_pipeline.label_config import LabelsConfig
from data_pipeline.raw_document import RawDocument
from data_pipeline.readers import read_documents

NUMBER = LabelsConfig(kind="number", field="score")


def documents(path: Path, labels: LabelsConfig | None = None) -> list[RawDocument]:
    return list(read_documents(SourceConfig(name="table", path=str(path)), labels))


def test_csv_rows_are_documents_with_quotes_and_line_breaks_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfscore,text\r\n1.5,"one, ""two""\nthree"\r\n\r\n-2,four\r\n')
    found = documents(path, NUMBER)
    assert [(each.document_id, each.data, each.label) for each in found] == [
        ("a.csv:3", b'one, "two"\nthree', 1.5),
        ("a.csv:5", b"four", -2.0),
    ]
    assert found[0].where == f"{path}, line 3"


def test_tabs_part_the_cells_of_a_tsv_file_gzipped_or_not(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress("text\tscore\nzwölf, dreizehn\t3\n".encode()))
    assert [(each.data.decode(), each.label) for each in documents(path, NUMBER)] == [("zwölf, dreizehn", 3.0)]


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "two"], "score": [1.0, 2.5]}), path)
    assert [(each.document_id, each.data, each.label) for each in documents(path, NUMBER)] == [
        ("a.parquet:1", b"one", 1.0),
        ("a.parquet:2", b"two", 2.5),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,score\nonly one cell\n", r"a\.csv, line 2 has 1 cells, and the header 2"),
        (b"text,text\na,b\n", "the first line names the columns, each once"),
        (b"", r"a\.csv is empty: its first line must name the columns"),
        (b'text,score\n"open,1\n', r"a\.csv, line 2 is not CSV"),
        (b"words,score\na,1\n", "has no key 'text'; it has 'words', 'score'. Set text_field"),
        (b"text,score\na,\n", "has '' under 'score', and labels.kind is number"),
    ],
)
def test_csv_that_cannot_be_read_is_refused_with_its_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        documents(path, NUMBER)


def test_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"no such thing")
    with pytest.raises(CorpusError, match=r"a\.parquet cannot be read as Parquet after row 0"):
        documents(path)


def test_text_that_is_no_text_in_parquet_is_refused_with_its_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [b"one"], "score": [1.0]}), path)
    with pytest.raises(CorpusError, match=r"a\.parquet, row 1 has a value of type bytes under 'text', not a string"):
        documents(path)
