"""Rows of tables: CSV, TSV and Parquet, one at a time, as objects that JSON lines would hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import CorpusError

_LARGEST_CELL_BYTES = 1 << 30
_ROWS_AT_A_TIME = 1024


def csv_rows(stream: BinaryIO, source: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV file with a header line, or of a TSV file by its ending, by the number of the line they end on.

    Raises:
        CorpusError: There is no header, or a row has more or fewer cells than it.
    """
    csv.field_size_limit(_LARGEST_CELL_BYTES)
    tabs = file.name.lower().removesuffix(".gz").endswith(".tsv")
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter="\t" if tabs else ",", strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise CorpusError(f"Source {source!r}: {file} is empty: its first line must name the columns. Fill it.")
        if len(set(header)) != len(header):
            raise CorpusError(
                f"Source {source!r}: {file} begins with {header}: the first line names the columns, each once. Add it."
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise CorpusError(
                    f"Source {source!r}: {file}, line {reader.line_num} has {len(cells)} cells, and the header "
                    f"{len(header)}. Mend the line; cells that hold separators or line breaks stand in double quotes."
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise CorpusError(
            f"Source {source!r}: {file}, line {reader.line_num} is not CSV ({error}). Mend the line."
        ) from error


def parquet_rows(source: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a Parquet file, counted from 1.

    Raises:
        CorpusError: It is no Parquet file, or damaged.
    """
    number = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(_ROWS_AT_A_TIME):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError):
            raise
        raise CorpusError(
            f"Source {source!r}: {file} cannot be read as Parquet after row {number} ({error}). Fetch it again."
        ) from error
