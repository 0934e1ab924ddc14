"""Arrow IPC shards: one document a row, read through a memory map, hashes checked at first touch."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from data_pipeline.errors import DatasetDamagedError
from data_pipeline.manifest import SegmentRecord, ShardRecord
from data_pipeline.publish import BLOCK_BYTES, file_hashes, sync_file

BATCH_TOKENS = 1 << 22
"""Tokens after which a record batch ends (8 MiB of uint16)."""
BATCH_DOCUMENTS = 1 << 16
"""Documents after which a record batch ends."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the smallest token type that holds a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class ShardWriter:
    """Writes one shard file of whole documents.

    Args:
        path: The file.
        dtype: Of the tokens.
        labels: The column of the documents' labels, where they have any.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], labels: pa.Field | None = None) -> None:
        self.path = path
        self.documents = 0
        self.tokens = 0
        self.utf8_bytes = 0
        self._dtype = dtype
        self._schema = pa.schema(
            [
                ("tokens", pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))),
                ("document_id", pa.string()),
                ("source", pa.string()),
                *([] if labels is None else [labels]),
            ]
        )
        self._labels: list[Any] | None = None if labels is None else []
        self._file = open(path, "wb")  # noqa: SIM115 - closed by finish and abandon
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._rows: list[npt.NDArray[Any]] = []
        self._ids: list[str] = []
        self._sources: list[str] = []
        self._pending_tokens = 0

    def add(
        self, tokens: npt.NDArray[Any], document_id: str, source: str, utf8_bytes: int, label: Any | None = None
    ) -> None:
        """Appends a document.

        Args:
            tokens: BOS, text, EOS; in the shard's type.
            document_id: Name of the document within its source.
            source: Name of the source.
            utf8_bytes: Length of its text.
            label: As its column holds it.
        """
        if self._labels is not None:
            self._labels.append(label)
        self._rows.append(tokens)
        self._ids.append(document_id)
        self._sources.append(source)
        self._pending_tokens += len(tokens)
        self.documents += 1
        self.tokens += len(tokens)
        self.utf8_bytes += utf8_bytes
        if self._pending_tokens >= BATCH_TOKENS or len(self._rows) >= BATCH_DOCUMENTS:
            self._flush()

    def finish(self, file: str, split: str) -> ShardRecord:
        """Closes the file, makes it durable and describes it.

        Args:
            file: The path that it will have in the dataset.
            split: Its split.
        """
        self._flush()
        self._writer.close()
        self._file.close()
        sync_file(self.path)
        hashes = file_hashes(self.path)
        return ShardRecord(
            file=file,
            split=split,
            documents=self.documents,
            tokens=self.tokens,
            utf8_bytes=self.utf8_bytes,
            size_bytes=hashes.size_bytes,
            hash=hashes.hash,
            blocks=hashes.blocks,
            segments=locate_segments(self.path),
        )

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._file.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        offsets = np.zeros(len(self._rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in self._rows], out=offsets[1:])
        values = pa.array(np.concatenate(self._rows).astype(self._dtype, copy=False))
        # from_arrays keeps the type's non-nullable item only when told so.
        tokens = pa.LargeListArray.from_arrays(pa.array(offsets), values, type=self._schema.field("tokens").type)
        ids, sources = pa.array(self._ids, pa.string()), pa.array(self._sources, pa.string())
        columns = [tokens, ids, sources]
        if self._labels is not None:
            columns.append(pa.array(self._labels, self._schema.types[-1]))
            self._labels = []
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows, self._ids, self._sources, self._pending_tokens = [], [], [], 0


def locate_segments(path: Path) -> tuple[SegmentRecord, ...]:
    """Finds where the record batches' offsets and tokens lie in a shard file.

    The file is mapped, so the addresses of Arrow's buffers less that of the map are positions in the file.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _segments(pa.py_buffer(mapped))


def _segments(buffer: Any) -> tuple[SegmentRecord, ...]:
    reader = pa.ipc.open_file(pa.BufferReader(buffer))
    records = []
    for number in range(reader.num_record_batches):
        tokens = reader.get_batch(number).column("tokens")
        _, offsets, _, values = tokens.buffers()
        records.append(
            SegmentRecord(
                documents=len(tokens),
                tokens=len(tokens.values),
                offsets_position=offsets.address - buffer.address,
                tokens_position=values.address - buffer.address,
            )
        )
    return tuple(records)


class MappedShard:
    """A shard file, mapped at first touch; each 1 MiB is hashed before its bytes are first used."""

    def __init__(self, directory: Path, record: ShardRecord, dtype: np.dtype[Any]) -> None:
        self.record = record
        self.path = directory / record.file
        self.verified = np.zeros(len(record.blocks), dtype=bool)
        self._dtype = dtype
        self._bytes: npt.NDArray[np.uint8] | None = None

    def check_size(self) -> None:
        """Raises where the file is missing or has another length than the manifest says."""
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError as error:
            raise DatasetDamagedError(f"Shard {self.path} is missing. {_REMEDY}") from error
        if size != self.record.size_bytes:
            raise DatasetDamagedError(
                f"Shard {self.path} has {size} bytes where the manifest says {self.record.size_bytes}: "
                f"it was cut off or overwritten. {_REMEDY}"
            )

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """The whole file as a mapped array, unverified."""
        if self._bytes is None:
            self.check_size()
            with open(self.path, "rb") as file:
                self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        return self._bytes

    def verify(self, start: int, stop: int) -> None:
        """Hashes the blocks that the byte range [start, stop) touches and that were not hashed before.

        Raises:
            DatasetDamagedError: A block is not what it was when the shard was written.
        """
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        for block in range(first, last + 1):
            if not self.verified[block]:
                self._verify_block(block)

    def _verify_block(self, block: int) -> None:
        begin = block * BLOCK_BYTES
        content = self.bytes[begin : begin + BLOCK_BYTES]
        actual, stated = xxhash.xxh3_64_hexdigest(content.data), self.record.blocks[block]
        if actual != stated:
            raise DatasetDamagedError(
                f"Shard {self.path} is damaged in block {block} (bytes {begin} to {begin + len(content)}): "
                f"its hash is {actual}, the manifest says {stated}. {_REMEDY}"
            )
        self.verified[block] = True

    def tokens(self, segment: SegmentRecord) -> npt.NDArray[Any]:
        """Returns a segment's tokens as a view of the file, unverified.

        Shape: (segment.tokens,).
        """
        return np.frombuffer(self.bytes, self._dtype, segment.tokens, segment.tokens_position)

    def offsets(self, segment: SegmentRecord) -> npt.NDArray[np.int64]:
        """Returns a segment's document offsets as a verified view of the file.

        Shape: (segment.documents + 1,); token positions within the segment.
        """
        start = segment.offsets_position
        self.verify(start, start + 8 * (segment.documents + 1))
        return np.frombuffer(self.bytes, np.int64, segment.documents + 1, start)

    def names(self, number: int) -> tuple[Any, Any]:
        """Returns the columns `document_id` and `source` of a record batch, after verifying the file."""
        batch = self.batch(number)
        return batch.column("document_id"), batch.column("source")

    def batch(self, number: int) -> Any:
        """Returns a record batch, after verifying the file."""
        self.verify(0, self.record.size_bytes)
        return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self.bytes))).get_batch(number)


_REMEDY = "Restore the file from a copy, or rebuild with `data build CONFIG --fresh`."
