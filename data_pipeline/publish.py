"""Publishing files whole: atomic writes, block hashes, JSON documents that carry their own checksum."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_pipeline.errors import SealError

BLOCK_BYTES = 1 << 20
"""Bytes under one block hash."""


@dataclass(frozen=True, kw_only=True)
class FileHashes:
    """Size and hashes of a file."""

    size_bytes: int
    """Length of the file."""
    hash: str
    """xxh3_128 of the whole, in hex."""
    blocks: tuple[str, ...]
    """xxh3_64 of every block in hex; the last block may be shorter."""


def sync_directory(directory: Path) -> None:
    """Makes renames and removals inside a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Makes a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new one, whole, also after a crash.

    Args:
        path: Target; its directory must exist.
        data: The content.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def file_hashes(path: str | os.PathLike[str], block_bytes: int = BLOCK_BYTES) -> FileHashes:
    """Hashes a file in one pass, as a whole and by block.

    Args:
        path: The file.
        block_bytes: Length of a block.

    Returns:
        Size, hash and block hashes.
    """
    whole = xxhash.xxh3_128()
    blocks: list[str] = []
    size = 0
    with open(path, "rb", buffering=0) as file:
        while block := _read_fully(file.fileno(), block_bytes):
            whole.update(block)
            blocks.append(xxhash.xxh3_64_hexdigest(block))
            size += len(block)
    return FileHashes(size_bytes=size, hash=whole.hexdigest(), blocks=tuple(blocks))


def _read_fully(descriptor: int, size: int) -> bytes:
    """Reads `size` bytes, fewer only at the end of the file (a single read may return less)."""
    parts: list[bytes] = []
    while size > 0 and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def canonical_json(document: Any) -> bytes:
    """Returns the one spelling of a JSON value that hashes are taken of: sorted keys, no spaces, UTF-8."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest(document: Any) -> str:
    """Returns the xxh3_128 of a JSON value's canonical spelling, in hex."""
    return xxhash.xxh3_128_hexdigest(canonical_json(document))


def seal(document: Mapping[str, Any]) -> bytes:
    """Spells a JSON object with a checksum of itself under the key `checksum`.

    Args:
        document: The object; it must not have that key.

    Returns:
        UTF-8 JSON, one key a line.
    """
    if "checksum" in document:
        raise ValueError("The document to seal already has a `checksum`: remove it, sealing adds it.")
    sealed = {**document, "checksum": digest(document)}
    return json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """Reads what `seal` wrote and proves that it is whole.

    Args:
        data: Content of the file.
        where: Its path, for messages.

    Returns:
        The object without its checksum.

    Raises:
        SealError: Torn, altered, or never sealed.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise SealError(
            f"{where} is not whole JSON ({len(data)} bytes; {error}): it was cut off or overwritten. "
            "Restore it from a copy, or have it written again."
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("checksum"), str):
        raise SealError(
            f"{where} carries no `checksum`, so it was not written by this program. Check that it is the right file."
        )
    stated = document.pop("checksum")
    actual = digest(document)
    if stated != actual:
        raise SealError(
            f"{where} does not match its own checksum (states {stated}, content gives {actual}): "
            "it was edited or damaged. Restore it from a copy, or have it written again."
        )
    return document
