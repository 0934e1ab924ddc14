"""One rank's tensors as a safetensors file: written and hashed in a single pass, read by ranges into given memory.

The format is that of the safetensors library, which opens these files too: eight bytes with the header's length, a JSON
header, the tensors end to end. Its own functions are not used for two reasons: writing through them takes a second pass
to hash what was written, and reading maps the file, whose pages then count as this process's memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import torch
import xxhash

from cluster.errors import CheckpointDamagedError, CheckpointError
from cluster.storage.operations import StoragePath
from cluster.storage.source import ReadAhead
from cluster.storage.transfer import open_for_reading, writing
from data_pipeline.publish import BLOCK_BYTES, FileHashes

_LENGTH_BYTES = 8
_ALIGNMENT_BYTES = 8
_FLOAT_BYTES = 4


def write_rank_file(
    path: StoragePath, tensors: Mapping[str, torch.Tensor], also: Callable[[memoryview], None] = lambda block: None
) -> FileHashes:
    """Write tensors durably, and hash them on the way.

    Args:
        path: The file.
        tensors: fp32 CPU tensors by key, in the order in which they will be read.
        also: Sees every block of bytes once it is written, in order.

    Returns:
        Size and hashes of the file.

    Raises:
        OSError: The file could not be written.
    """
    whole, blocks, size_bytes = xxhash.xxh3_128(), [], 0
    with writing(path, sum(tensor.nbytes for tensor in tensors.values())) as file:
        for block in _blocks(tensors):
            whole.update(block)
            blocks.append(xxhash.xxh3_64_hexdigest(block))
            size_bytes += len(block)
            file.write(block)
            also(block)
    return FileHashes(size_bytes=size_bytes, hash=whole.hexdigest(), blocks=tuple(blocks))


class RankFile:
    """An open file of one rank.

    Args:
        path: The file.
        ahead: What takes more than is asked for; shared by the files that are read in turn.

    Raises:
        OSError: It cannot be opened or read.
        CheckpointDamagedError: Its header is not one.
    """

    def __init__(self, path: StoragePath, ahead: ReadAhead | None = None) -> None:
        self._path = path
        self._ahead = ahead or ReadAhead()
        self._source = open_for_reading(path)
        try:
            prefix = bytearray(_LENGTH_BYTES)
            self._read(memoryview(prefix), 0)
            length = int.from_bytes(prefix, "little")
            self._start = _LENGTH_BYTES + length
            if self._start > self._source.size_bytes:
                raise ValueError(f"it states a header of {length} bytes")
            header = bytearray(length)
            self._read(memoryview(header), _LENGTH_BYTES)
            self._header = json.loads(header)
        except ValueError as error:
            raise CheckpointDamagedError(f"checkpoint file {path} is no safetensors file: {error}") from error

    def read_into(self, key: str, start: int, target: torch.Tensor) -> None:
        """Fill a tensor with elements of another one in the file.

        Args:
            key: Name of the tensor in the file.
            start: Its first element to take.
            target: Contiguous fp32 CPU tensor; its length says how many.

        Raises:
            OSError: The file cannot be read.
            CheckpointDamagedError: It ends before them.
            CheckpointError: It holds no such elements.
        """
        entry = self._header.get(key)
        if entry is None or entry["dtype"] != "F32":
            raise CheckpointError(f"checkpoint file {self._path} holds no fp32 tensor {key!r}.")
        first, last = entry["data_offsets"]
        position = self._start + first + start * _FLOAT_BYTES
        view = _bytes_of(target)
        if position + len(view) > self._start + last:
            raise CheckpointError(
                f"checkpoint file {self._path} holds {(last - first) // _FLOAT_BYTES} elements of {key}, and those "
                f"from {start} to {start + target.numel()} are wanted."
            )
        self._read(view, position)

    def _read(self, target: memoryview, position: int) -> None:
        count = self._ahead.read_into(self._source, target, position)
        if count < len(target):
            raise CheckpointDamagedError(f"checkpoint file {self._path} ends after {position + count} bytes.")


def _blocks(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    """The file's bytes in blocks of BLOCK_BYTES, the last one shorter; whole blocks of a tensor are not copied."""
    gathered = bytearray()
    for part in (memoryview(_header(tensors)), *map(_bytes_of, tensors.values())):
        begin = 0
        if gathered:
            begin = min(BLOCK_BYTES - len(gathered), len(part))
            gathered += part[:begin]
            if len(gathered) == BLOCK_BYTES:
                yield memoryview(gathered)
                gathered = bytearray()
        while len(part) - begin >= BLOCK_BYTES:
            yield part[begin : begin + BLOCK_BYTES]
            begin += BLOCK_BYTES
        gathered += part[begin:]
    if gathered:
        yield memoryview(gathered)


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    entries, offset = {}, 0
    for key, tensor in tensors.items():
        stop = offset + tensor.numel() * _FLOAT_BYTES
        entries[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's own memory as bytes; little-endian, as every machine that torch runs on."""
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    return tensor.detach().numpy().data.cast("B") if tensor.numel() else memoryview(b"")
