"""Documents out of files: plain text, JSON lines, tables and tagged sentences, gzip-compressed or not."""

from __future__ import annotations

import difflib
import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_pipeline.config import SourceConfig
from data_pipeline.conllu import sentences
from data_pipeline.errors import CorpusError
from data_pipeline.label_config import LabelsConfig
from data_pipeline.labels import Label, LabelReader
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
_JSON_TYPES = {
    "dict": "an object",
    "list": "a list",
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "NoneType": "null",
}


@dataclass(frozen=True)
class Word:
    """A word that has a label of its own."""

    text: str
    space_after: bool = True


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read; bytes, because they may not be UTF-8."""

    document_id: str
    """Name within the source."""
    source: str
    data: bytes
    where: str
    """File (and line), for messages."""
    offset: int = 0
    """Byte in the file at which `data` begins; 0 for lines and rows."""
    label: Label | None = None
    """What it is labelled with, where labels were asked for."""
    words: tuple[Word, ...] | None = None
    """Where each word has a label: the words of `data`."""


def find_files(source: SourceConfig) -> list[Path]:
    """Lists a source's files, sorted.

    Raises:
        CorpusError: The path does not exist, or holds no file of the format.
    """
    path = Path(source.path)
    if path.is_file():
        return [path]
    if path.is_dir():
        endings = _endings(source.format)
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
        yield from _read_conllu(source, file, name, labels)
    elif kind == "text":
        if labels is not None:
            raise CorpusError(
                f"Source {source.name!r}: {file} is plain text, which has no labels, and labels.field is "
                f"{labels.field!r}. Use JSON lines, CSV, Parquet or CoNLL-U, or leave labels out."
            )
        yield from _read_text(source, file, name)
    else:
        for number, value in _read_objects(source, kind, file):
            unit = "row" if kind == "parquet" else "line"
            yield _document(source, value, f"{name}:{number}", f"{file}, {unit} {number}", labels)


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
                yield number, _json_object(source, line, f"{file}, line {number}")


def _json_object(source: SourceConfig, line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode(errors="surrogateescape").removeprefix("\ufeff"))
    except ValueError as error:
        raise CorpusError(
            f"Source {source.name!r}: {where} is not JSON ({error}): {_excerpt(line)}. Mend or remove the line."
        ) from error
    if not isinstance(value, dict):
        raise CorpusError(
            f"Source {source.name!r}: {where} holds {_JSON_TYPES[type(value).__name__]}, not an object: "
            f"{_excerpt(line)}. "
            "Each line must be an object with the text under a key."
        )
    return value


def _document(
    source: SourceConfig, value: dict[str, Any], place: str, where: str, labels: LabelsConfig | None
) -> RawDocument:
    text = _field(source, value, "text_field", source.text_field, where)
    name = place if source.id_field is None else str(_field(source, value, "id_field", source.id_field, where))
    label: Label | None = None
    if labels is not None:
        told = _field(source, value, "labels.field", labels.field, where)
        label = LabelReader(labels, source.name).read(told, where)
        if labels.kind == "token_class":
            return _tagged(source, name, where, _words(source, text, where), label)
    if not isinstance(text, str):
        excerpt = _excerpt(json.dumps(value, default=str).encode())
        raise CorpusError(
            f"Source {source.name!r}: {where} has {_JSON_TYPES.get(type(text).__name__, type(text).__name__)} under "
            f"{source.text_field!r}, not a string: {excerpt}. Set text_field to the key of the text."
        )
    return RawDocument(_printable(name), source.name, _bytes(text), where, label=label)


def _bytes(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate was written as \\ud800: not UTF-8 either, which cleaning decides on
        return text.encode(errors="surrogatepass")


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()


def _words(source: SourceConfig, value: object, where: str) -> tuple[Word, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise CorpusError(
            f"Source {source.name!r}: {where} has {str(value)[:80]!r} under {source.text_field!r}, and labels.kind is "
            "token_class: it must be a list of words, none of them empty. Mend or remove the line."
        )
    return tuple(Word(item) for item in value)


def _tagged(source: SourceConfig, name: str, where: str, words: tuple[Word, ...], label: Label) -> RawDocument:
    assert isinstance(label, tuple)
    if len(label) != len(words):
        raise CorpusError(
            f"Source {source.name!r}: {where} has {len(words)} words and {len(label)} labels: each word has one. "
            "Mend or remove the line."
        )
    return RawDocument(_printable(name), source.name, _bytes(joined(words)), where, label=label, words=words)


def joined(words: tuple[Word, ...]) -> str:
    """The text of words."""
    return "".join(word.text + " " * word.space_after for word in words).rstrip(" ")


def _read_conllu(source: SourceConfig, file: Path, name: str, labels: LabelsConfig | None) -> Iterator[RawDocument]:
    if labels is not None and labels.kind != "token_class":
        raise CorpusError(
            f"Source {source.name!r}: {file} is CoNLL-U, which labels words, and labels.kind is {labels.kind}. Set it "
            "to token_class, or leave labels out for the text alone."
        )
    with _open(file) as stream:
        for sentence in sentences(stream, "upos" if labels is None else labels.field, source.name, file):
            where = f"{file}, line {sentence.line}"
            place = sentence.name or f"{name}:{sentence.line}"
            words = tuple(Word(*each) for each in zip(sentence.words, sentence.spaces, strict=True))
            if labels is None:
                yield RawDocument(_printable(place), source.name, _bytes(joined(words)), where)
            else:
                label = LabelReader(labels, source.name).read(sentence.tags, where)
                yield _tagged(source, place, where, words, label)


def _field(source: SourceConfig, value: dict[str, Any], option: str, key: str, where: str) -> Any:
    if key not in value:
        raise CorpusError(
            f"Source {source.name!r}: {where} has no key {key!r}; it has "
            f"{', '.join(map(repr, value)) or 'none'}. "
            f"Set {option} to one of them."
        )
    return value[key]


def _format(source: SourceConfig, file: Path) -> str:
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


def _excerpt(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 80 else text[:77] + "...")
