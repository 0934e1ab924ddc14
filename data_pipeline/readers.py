"""Documents out of files: plain text, JSON lines, tables and tagged sentences, gzip-compressed or not."""

from __future__ import annotations

import difflib
import glob
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_pipeline.config import SourceConfig
from data_pipeline.errors import CorpusError
from data_pipeline.json_lines import json_object
from data_pipeline.label_config import LabelsConfig
from data_pipeline.objects import document_of, documents_of_treebank
from data_pipeline.raw_document import RawDocument
from data_pipeline.tables import csv_rows, parquet_rows

TEXT_ENDINGS = (".txt", ".md", ".text")
JSONL_ENDINGS = (".jsonl", ".ndjson")
_ENDINGS = {
    "text": TEXT_ENDINGS,
    "jsonl": JSONL_ENDINGS,
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "conllu": (".conllu",),
}
_ALL_ENDINGS = tuple(ending for endings in _ENDINGS.values() for ending in endings)
_SUGGESTIONS_AT_MOST = 3


def find_files(source: SourceConfig) -> list[Path]:
    """Lists a source's files, sorted.

    Raises:
        CorpusError: The path does not exist, or holds no file of the format.
    """
    path = Path(source.path)
    if path.is_file():
        return [path]
    if path.is_dir():
        endings = _endings("jsonl" if source.holds_conversations else source.format)
        files = sorted(item for item in path.rglob("*") if item.is_file() and _wanted(item.relative_to(path), endings))
        if not files:
            raise CorpusError(
                f"Source {source.name!r}: the directory {path} holds no file ending in {', '.join(endings)} "
                "(or with .gz after it). Check the path; other endings are read through a glob pattern "
                "with `format` set."
            )
        return files
    if glob.has_magic(source.path):
        files = sorted(Path(item) for item in glob.glob(source.path, recursive=True) if Path(item).is_file())
        if not files:
            raise CorpusError(f"Source {source.name!r}: no file matches the pattern {source.path}. Check the pattern.")
        return files
    raise CorpusError(f"Source {source.name!r}: {source.path} does not exist. {_suggestion(path)}")


def read_documents(source: SourceConfig, labels: LabelsConfig | None = None) -> Iterator[RawDocument]:
    """Yields a source's documents in the order of files and places within them.

    Lines and rows are read one at a time, text files one file at a time.

    Args:
        source: Where they lie.
        labels: What they are labelled with.

    Raises:
        CorpusError: Names file, line and what is wrong with it.
    """
    root = Path(source.path)
    files = find_files(source)
    base = root if root.is_dir() else Path(_common_directory(files))
    found = False
    for file in files:
        name = file.relative_to(base).as_posix()
        with _explained(source, file):
            for document in _read(source, file, name, labels):
                found = True
                yield document
    if not found:
        raise CorpusError(
            f"Source {source.name!r}: there is no document in {files[0] if len(files) == 1 else _several(files)}. "
            "Check the path."
        )


def _read(source: SourceConfig, file: Path, name: str, labels: LabelsConfig | None) -> Iterator[RawDocument]:
    kind = _format(source, file)
    if kind == "conllu":
        with _open(file) as stream:
            yield from documents_of_treebank(source, stream, file, name, labels)
    elif kind == "text":
        if labels is not None:
            raise CorpusError(
                f"Source {source.name!r}: {file} is plain text, which has no labels, and labels.field is "
                f"{labels.field!r}. Use JSON lines, CSV, Parquet or CoNLL-U, or leave labels out."
            )
        yield from _read_text(source, file, name)
    else:
        unit = "row" if kind == "parquet" else "line"
        for number, value in _read_objects(source, kind, file):
            yield document_of(source, value, f"{name}:{number}", f"{file}, {unit} {number}", labels)


def _read_text(source: SourceConfig, file: Path, name: str) -> Iterator[RawDocument]:
    with _open(file) as stream:
        data = stream.read()
    if source.document_separator is None:
        if data:
            yield RawDocument(name, source.name, data, str(file))
        return
    # Undecodable bytes survive as surrogates, so that cleaning finds them and can say where.
    text = data.decode(errors="surrogateescape")
    cuts = [match.start() for match in re.finditer(source.document_separator, text, re.MULTILINE)]
    cuts = [cut for cut in cuts if text[:cut].strip()]
    offset = 0
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(text)], strict=True)):
        piece = text[start:stop].encode(errors="surrogateescape")
        if piece:
            yield RawDocument(f"{name}#{number:06d}", source.name, piece, str(file), offset)
        offset += len(piece)


def _read_objects(source: SourceConfig, kind: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines or rows as objects, with their number."""
    if kind == "parquet":
        yield from parquet_rows(source.name, file)
        return
    with _open(file) as stream:
        if kind == "csv":
            yield from csv_rows(stream, source.name, file)
            return
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, json_object(source, line, f"{file}, line {number}")


def _format(source: SourceConfig, file: Path) -> str:
    if source.holds_conversations:
        return "jsonl"
    if source.format != "auto":
        return source.format
    for kind, endings in _ENDINGS.items():
        if _wanted(Path(file.name), endings):
            return kind
    raise CorpusError(
        f"Source {source.name!r}: the ending of {file} does not tell its format; known are "
        f"{', '.join(_ALL_ENDINGS)}, each also with .gz. Set format to {', '.join(_ENDINGS)}."
    )


def _endings(name: str) -> tuple[str, ...]:
    return _ENDINGS.get(name, TEXT_ENDINGS + JSONL_ENDINGS)


def _wanted(relative: Path, endings: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return not hidden and relative.name.lower().removesuffix(".gz").endswith(endings)


def _common_directory(files: list[Path]) -> Path:
    base = files[0].parent
    while not all(file.is_relative_to(base) for file in files):
        base = base.parent
    return base


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if file.name.lower().endswith(".gz") else open(file, "rb")


@contextmanager
def _explained(source: SourceConfig, file: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(
            f"Source {source.name!r}: {file} is cut off or not gzip ({error}). Fetch it again, or compress it again."
        ) from error
    except (PermissionError, IsADirectoryError, FileNotFoundError) as error:
        raise CorpusError(f"Source {source.name!r}: {file} cannot be read: {error.strerror}.") from error


def _several(files: list[Path]) -> str:
    return f"any of its {len(files):,} files, from {files[0]} to {files[-1]}"


def _suggestion(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    names = sorted(item.name for item in parent.iterdir() if not item.name.startswith("."))
    child = path.parts[len(parent.parts)] if len(path.parts) > len(parent.parts) else path.name
    close = difflib.get_close_matches(child, names, n=_SUGGESTIONS_AT_MOST)
    if close:
        return f"Did you mean {' or '.join(str(parent / name) for name in close)}?"
    return f"{parent.resolve()} is there, and holds nothing of a similar name. Check the path."
