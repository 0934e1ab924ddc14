"""Documents out of files: plain text and JSON lines, gzip-compressed or not."""

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
from data_pipeline.errors import CorpusError

TEXT_ENDINGS = (".txt", ".md", ".text")
JSONL_ENDINGS = (".jsonl", ".ndjson")
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
class RawDocument:
    """A document as it was read; bytes, because they may not be UTF-8."""

    document_id: str
    """Name within the source."""
    source: str
    data: bytes
    where: str
    """File (and line), for messages."""
    offset: int = 0
    """Byte in the file at which `data` begins; 0 for JSON lines."""


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


def read_documents(source: SourceConfig) -> Iterator[RawDocument]:
    """Yields a source's documents in the order of files and places within them.

    JSON lines are read one at a time, text files one file at a time.

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
            reader = _read_text if _format(source, file) == "text" else _read_jsonl
            for document in reader(source, file, name):
                found = True
                yield document
    if not found:
        raise CorpusError(
            f"Source {source.name!r}: there is no document in {files[0] if len(files) == 1 else _several(files)}. "
            "Check the path."
        )


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


def _read_jsonl(source: SourceConfig, file: Path, name: str) -> Iterator[RawDocument]:
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _json_document(source, line, f"{name}:{number}", f"{file}, line {number}")


def _json_document(source: SourceConfig, line: bytes, place: str, where: str) -> RawDocument:
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
    text = _field(source, value, "text_field", source.text_field, where)
    if not isinstance(text, str):
        raise CorpusError(
            f"Source {source.name!r}: {where} has {_JSON_TYPES[type(text).__name__]} under {source.text_field!r}, not "
            f"a string: {_excerpt(line)}. Set text_field to the key of the text."
        )
    name = place if source.id_field is None else str(_field(source, value, "id_field", source.id_field, where))
    try:
        data = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate was written as \\ud800: not UTF-8 either, which cleaning decides on
        data = text.encode(errors="surrogatepass")
    return RawDocument(name.encode(errors="replace").decode(), source.name, data, where)


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
    if _wanted(Path(file.name), TEXT_ENDINGS):
        return "text"
    if _wanted(Path(file.name), JSONL_ENDINGS):
        return "jsonl"
    raise CorpusError(
        f"Source {source.name!r}: the ending of {file} does not tell its format; known are "
        f"{', '.join(TEXT_ENDINGS + JSONL_ENDINGS)}, each also with .gz. Set format to `text` or `jsonl`."
    )


def _endings(name: str) -> tuple[str, ...]:
    return {"text": TEXT_ENDINGS, "jsonl": JSONL_ENDINGS}.get(name, TEXT_ENDINGS + JSONL_ENDINGS)


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
