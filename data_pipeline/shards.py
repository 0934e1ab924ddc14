"""Arrow IPC shards: one document a row, read through a memory map, hashes checked at first touch.

A row has `tokens`, `document_id` and `source`; of a conversation also `answer_mask`, a byte for each token.
"""

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
ANSWER_MASK = "answer_mask"
"""Column that only conversations have."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the smallest token type that holds a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class ShardWriter:
    """Writes one shard file of whole documents.

    Args:
        path: The file.
        dtype: Of tokens.
        with_answers: Whether the documents are conversations, whose answers a mask tells.
        labels: The column of the documents' labels, where they have any.
    """

    def __init__(
        self, path: Path, dtype: np.dtype[Any], *, with_answers: bool = False, labels: pa.Field | None = None
    ) -> None:
        self.path = path
        self.documents = 0
        self.tokens = 0
        self.utf8_bytes = 0
        self.answer_tokens = 0
        self._dtype = dtype
        self._schema = pa.schema(
            [
                ("tokens", pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))),
                ("document_id", pa.string()),
                ("source", pa.string()),
                *([(ANSWER_MASK, pa.large_list(pa.field("item", pa.uint8(), nullable=False)))] * with_answers),
                *([] if labels is None else [labels]),
            ]
        )
        self._masks: list[npt.NDArray[np.uint8]] | None = [] if with_answers else None
        self._labels: list[Any] | None = None if labels is None else []
        self._file = open(path, "wb")  # noqa: SIM115 - closed by finish and abandon
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._rows: list[npt.NDArray[Any]] = []
        self._ids: list[str] = []
        self._sources: list[str] = []
        self._pending_tokens = 0

    def add(
        self,
        tokens: npt.NDArray[Any],
        document_id: str,
        source: str,
        utf8_bytes: int,
        answer_mask: npt.NDArray[np.uint8] | None = None,
        label: Any | None = None,
    ) -> None:
        """Appends a document.

        Args:
            tokens: BOS, text, EOS; in the shard's type.
            document_id: Name of the document within its source.
            source: Name of the source.
            utf8_bytes: Length of its text.
            answer_mask: Of a conversation: 1 for tokens of answers, 0 for others; as long as the tokens.
            label: As its column holds it.
        """
        if self._labels is not None:
            self._labels.append(label)
        if self._masks is not None:
            assert answer_mask is not None
            assert len(answer_mask) == len(tokens)
            self._masks.append(answer_mask)
            self.answer_tokens += int(answer_mask.sum())
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
            answer_tokens=None if self._masks is None else self.answer_tokens,
        )

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._file.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        offsets = np.zeros(len(self._rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in self._rows], out=offsets[1:])
        columns = [
            self._lists("tokens", offsets, np.concatenate(self._rows).astype(self._dtype, copy=False)),
            pa.array(self._ids, pa.string()),
            pa.array(self._sources, pa.string()),
        ]
        if self._masks is not None:
            columns.append(self._lists(ANSWER_MASK, offsets, np.concatenate(self._masks)))
            self._masks = []
        if self._labels is not None:
            columns.append(pa.array(self._labels, self._schema.types[-1]))
            self._labels = []
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows, self._ids, self._sources, self._pending_tokens = [], [], [], 0

    def _lists(self, column: str, offsets: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> Any:
        # from_arrays keeps the type's non-nullable item only when told so.
        kind = self._schema.field(column).type
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind)


def locate_segments(path: Path) -> tuple[SegmentRecord, ...]:
    """Finds where the record batches' offsets, tokens and answer masks lie in a shard file.

    The file is mapped, so the addresses of Arrow's buffers less that of the map are positions in the file.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _segments(pa.py_buffer(mapped))


def _segments(buffer: Any) -> tuple[SegmentRecord, ...]:
    reader = pa.ipc.open_file(pa.BufferReader(buffer))
    records = []
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        tokens = batch.column("tokens")
        _, offsets, _, values = tokens.buffers()
        mask = batch.column(ANSWER_MASK).buffers()[3] if ANSWER_MASK in batch.schema.names else None
        records.append(
            SegmentRecord(
                documents=len(tokens),
                tokens=len(tokens.values),
                offsets_position=offsets.address - buffer.address,
                tokens_position=values.address - buffer.address,
                answer_mask_position=None if mask is None else mask.address - buffer.address,
            )
        )
    return tuple(records)


class MappedShard:
    """A shard file, mapped at first touch; each 1 MiB is hashed before its bytes are first used."""

    def __init__(self, directory: Path, record: ShardRecord) -> None:
        self.record = record
        self.path = directory / record.file
        self.verified = np.zeros(len(record.blocks), dtype=bool)
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

    def values(self, position: int, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Returns values as a view of the file, unverified.

        Args:
            position: Byte at which they begin.
            count: How many there are.
            dtype: Their type.
        """
        return np.frombuffer(self.bytes, dtype, count, position)

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
