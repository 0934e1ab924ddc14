"""A built dataset, opened for reading: memory-mapped splits, hashes checked at first touch, statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_pipeline.chat_template import ChatTemplate
from data_pipeline.errors import DatasetDamagedError, DatasetError
from data_pipeline.labels import labels_hash
from data_pipeline.manifest import SPLITS, TOKENIZER_FILE, LabelsRecord, Manifest
from data_pipeline.publish import BLOCK_BYTES
from data_pipeline.shards import locate_segments
from data_pipeline.stream import TokenStream
from data_pipeline.tokenizer import Tokenizer

VerifyProgress = Callable[[int, int], None]
"""Called with the bytes verified so far and the bytes in all."""

_REBUILD = "Restore the file from a copy, or rebuild with `data build CONFIG --fresh`."


class Dataset:
    """A dataset directory."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._splits = {name: TokenStream(directory, manifest, name) for name in SPLITS}

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Opens a dataset; its shards are mapped at first touch.

        Raises:
            DatasetError: There is no finished dataset at the path.
            DatasetDamagedError: Its manifest is altered, or a shard is missing or of another size.
        """
        directory = Path(path)
        dataset = cls(directory, Manifest.load(directory))
        for name in SPLITS:
            for shard in dataset.split(name).shards:
                shard.check_size()
        return dataset

    @property
    def name(self) -> str:
        """Name for people."""
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """Identity of tokenizer and tokens."""
        return self.manifest.fingerprint

    @property
    def tokenizer_hash(self) -> str:
        """xxh3_128 of the tokenizer model."""
        return self.manifest.tokenizer_hash

    @property
    def vocab_size(self) -> int:
        """Pieces of the tokenizer."""
        return self.manifest.vocab_size

    @property
    def chat_template(self) -> ChatTemplate | None:
        """What its conversations were written with; None where it holds text."""
        return self.manifest.chat_template

    @property
    def labels(self) -> LabelsRecord:
        """What its documents are labelled with.

        Raises:
            DatasetError: Nothing.
        """
        labels = self.manifest.labels
        if labels is None:
            raise DatasetError(
                f"{self.directory} has no labels, and this task learns them. Build it with `labels: {{kind: …, field: "
                "…}` in its data config, or use another dataset."
            )
        return labels

    def split(self, name: str) -> TokenStream:
        """Returns the token stream `train` or `validation`."""
        if name not in self._splits:
            raise DatasetError(f"There is no split {name!r}: a dataset has {' and '.join(SPLITS)}.")
        return self._splits[name]

    def tokenizer(self) -> Tokenizer:
        """Loads the dataset's tokenizer.

        Raises:
            DatasetDamagedError: It is missing or not the one that the dataset was built with.
        """
        path = self.directory / TOKENIZER_FILE
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise DatasetDamagedError(f"{path} is missing. {_REBUILD}") from error
        if (actual := xxhash.xxh3_128_hexdigest(data)) != self.tokenizer_hash:
            raise DatasetDamagedError(
                f"{path} is not the tokenizer that the dataset was built with: its hash is {actual}, the "
                "manifest says "
                f"{self.tokenizer_hash}. {_REBUILD}"
            )
        return Tokenizer.from_bytes(data, str(path))

    def verify(self, progress: VerifyProgress | None = None) -> None:
        """Checks everything: ledgers, every block of every shard, counts against content, the tokenizer.

        Args:
            progress: Told of bytes verified.

        Raises:
            DatasetDamagedError: Names the file and what is wrong with it.
        """
        total = sum(shard.size_bytes for shard in self.manifest.shards)
        done = 0
        self.tokenizer()
        for name in SPLITS:
            stream = TokenStream(self.directory, self.manifest, name)
            for shard in stream.shards:
                for start in range(0, shard.record.size_bytes, BLOCK_BYTES):
                    stop = min(start + BLOCK_BYTES, shard.record.size_bytes)
                    shard.verify(start, stop)
                    done += stop - start
                    if progress is not None:
                        progress(done, total)
                if locate_segments(shard.path) != shard.record.segments:
                    raise DatasetDamagedError(
                        f"{shard.path} has other record batches than its manifest says. {_REBUILD}"
                    )
            self._verify_stream(stream)

    def _verify_stream(self, stream: TokenStream) -> None:
        record = self.manifest.splits[stream.split]
        whole, masks, documents = xxhash.xxh3_128(), xxhash.xxh3_128(), 0
        for start in range(0, stream.tokens, BLOCK_BYTES):
            tokens = stream.read(start, min(start + BLOCK_BYTES, stream.tokens))
            begins = np.flatnonzero(tokens == stream.bos_id) + start
            if not np.array_equal(begins, stream.document_starts(start, start + len(tokens))):
                raise DatasetDamagedError(
                    f"{self.directory}: documents of the {stream.split} split do not begin where BOS "
                    "stands, between "
                    f"tokens {start} and {start + len(tokens)}. {_REBUILD}"
                )
            documents += len(begins)
            whole.update(tokens.data)
            if self.chat_template is not None:
                masks.update(stream.read_answers(start, start + len(tokens)).data)
        if self.manifest.labels is not None:
            self._verify_labels(stream, self.manifest.labels)
        if self.chat_template is not None and masks.hexdigest() != record.answer_mask_hash:
            raise DatasetDamagedError(
                f"{self.directory}: the answer mask of the {stream.split} split has the hash {masks.hexdigest()}, the "
                f"manifest says {record.answer_mask_hash}. {_REBUILD}"
            )
        if (documents, whole.hexdigest()) != (record.documents, record.tokens_hash):
            raise DatasetDamagedError(
                f"{self.directory}: the {stream.split} split holds {documents} documents with token hash "
                f"{whole.hexdigest()}, the manifest says {record.documents} and {record.tokens_hash}. "
                f"{_REBUILD}"
            )

    def _verify_labels(self, stream: TokenStream, labels: LabelsRecord) -> None:
        """Labels are inside the files whose every byte was hashed: that they are those of the build is left to ask."""
        found = labels_hash(stream.labels(labels.kind), labels.kind)
        if found != labels.hashes[stream.split]:
            raise DatasetDamagedError(
                f"{self.directory}: the labels of the {stream.split} split have the hash {found}, the manifest says "
                f"{labels.hashes[stream.split]}. {_REBUILD}"
            )

    def stats(self) -> dict[str, Any]:
        """Returns ledgers, tokens by split and source, bytes per token and document lengths."""
        manifest = self.manifest
        lengths = np.concatenate([self.split(name).document_lengths() for name in SPLITS])
        return {
            "name": manifest.name,
            "fingerprint": manifest.fingerprint,
            "tokenizer_hash": manifest.tokenizer_hash,
            "vocab_size": manifest.vocab_size,
            "documents": {name: split.documents for name, split in manifest.splits.items()},
            "tokens": {name: split.tokens for name, split in manifest.splits.items()},
            **(
                {"answer_tokens": {name: split.answer_tokens for name, split in manifest.splits.items()}}
                if self.chat_template is not None
                else {}
            ),
            "tokens_by_source": {source.name: dict(source.tokens) for source in manifest.sources},
            "build_ledger": asdict(manifest.ledger),
            "build_ledger_by_source": {source.name: asdict(source.ledger) for source in manifest.sources},
            "bytes_per_token": manifest.ledger.bytes_kept / manifest.tokens if manifest.tokens else None,
            "document_length_histogram": length_histogram(lengths),
            **({} if manifest.labels is None else {"labels": _told(manifest.labels)}),
        }


def _told(labels: LabelsRecord) -> dict[str, Any]:
    counts = {split: dict(zip(labels.names, each, strict=True)) for split, each in labels.counts.items()}
    return {"kind": labels.kind, **({"counts": counts} if labels.names else {})}


def length_histogram(lengths: Any) -> list[dict[str, int]]:
    """Counts documents by length in tokens, in bins of doubling width.

    Args:
        lengths: Tokens of each document. Shape: (documents,).

    Returns:
        One entry a bin, from the shortest document's to the longest's: `from_tokens`, `to_tokens`
        (exclusive) and `documents`.
    """
    if len(lengths) == 0:
        return []
    exponents = np.frexp(np.asarray(lengths, dtype=np.float64))[1] - 1
    counts = np.bincount(exponents)
    first = int(exponents.min())
    return [
        {"from_tokens": 1 << power, "to_tokens": 1 << (power + 1), "documents": int(counts[power])}
        for power in range(first, len(counts))
    ]
