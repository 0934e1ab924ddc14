"""A dataset's manifest: what its files hold, their hashes, and the ledgers of its build."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from data_pipeline.chat_template import ChatTemplate
from data_pipeline.errors import DatasetDamagedError, DatasetError, SealError
from data_pipeline.publish import digest, seal, unseal

SCHEMA_VERSION = 1
TUNING_SCHEMA_VERSION = 2
"""Of a dataset of conversations: it has fields that a reader of version 1 does not know."""
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.model"
SPLITS = ("train", "validation")

Record = TypeVar("Record")
_PLAIN: dict[Any, type] = {int: int, str: str, int | None: int, str | None: str}
"""Types of fields whose values are compared with them; a null is never written."""


@dataclass(frozen=True, kw_only=True)
class SegmentRecord:
    """One record batch of a shard: a run of documents whose tokens lie contiguous in the file."""

    documents: int
    """Rows."""
    tokens: int
    """Tokens of all rows."""
    offsets_position: int
    """Byte in the file at which its documents + 1 list offsets (int64) begin."""
    tokens_position: int
    """Byte in the file at which its token values begin."""
    answer_mask_position: int | None = None
    """Byte in the file at which its answer mask begins, one byte a token; null in a dataset of text."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One Arrow IPC file."""

    file: str
    """Path relative to the dataset."""
    split: str
    """`train` or `validation`."""
    documents: int
    """Rows."""
    tokens: int
    """Tokens, BOS and EOS counted."""
    utf8_bytes: int
    """Bytes of its documents' normalised text."""
    size_bytes: int
    """Length of the file."""
    hash: str
    """xxh3_128 of the file."""
    blocks: tuple[str, ...]
    """xxh3_64 of every 1 MiB."""
    segments: tuple[SegmentRecord, ...]
    """Its record batches, in order."""
    answer_tokens: int | None = None
    """Tokens of answers, the EOS behind each counted; null in a dataset of text."""


@dataclass(frozen=True, kw_only=True)
class BuildLedger:
    """Documents and UTF-8 bytes of a build: read = kept + dropped + removed by normalisation."""

    documents_read: int
    documents_kept: int
    documents_dropped: dict[str, int]
    """By reason."""
    bytes_read: int
    bytes_kept: int
    """Of normalised text."""
    bytes_dropped: dict[str, int]
    """By reason, as read."""
    bytes_removed_by_normalisation: int
    """Of kept documents: as read less as kept; negative where normalisation added."""

    def problem(self) -> str | None:
        """Returns how the ledger fails to add up, or None."""
        documents = self.documents_kept + sum(self.documents_dropped.values())
        if documents != self.documents_read:
            return f"{self.documents_read} documents read, but {documents} kept or dropped"
        total = self.bytes_kept + sum(self.bytes_dropped.values()) + self.bytes_removed_by_normalisation
        if total != self.bytes_read:
            return f"{self.bytes_read} bytes read, but {total} kept, dropped or removed by normalisation"
        return None


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """What one split holds."""

    documents: int
    tokens: int
    """BOS and EOS counted."""
    utf8_bytes: int
    """Of normalised text."""
    tokens_hash: str
    """xxh3_128 of the split's tokens in order, whatever their division into shards."""
    answer_tokens: int | None = None
    """Tokens of answers, the EOS behind each counted; null in a dataset of text."""
    answer_mask_hash: str | None = None
    """xxh3_128 of the split's answer mask in order."""


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """What one source gave."""

    name: str
    ledger: BuildLedger
    tokens: dict[str, int]
    """By split."""


@dataclass(frozen=True, kw_only=True)
class LabelsRecord:
    """What the documents of a dataset are labelled with."""

    kind: str
    """See `data_pipeline.label_config.LabelsConfig`."""
    names: tuple[str, ...]
    """Classes, in the order of the model's outputs; none of numbers."""
    counts: dict[str, tuple[int, ...]]
    """By split, how many documents, or words, have each class."""
    hashes: dict[str, str]
    """By split, xxh3_128 of its labels in order."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of manifest.json."""

    schema_version: int
    name: str
    fingerprint: str
    """Hash of tokenizer and tokens: two datasets of one fingerprint give the same sequences."""
    tokenizer_hash: str
    """xxh3_128 of tokenizer.model."""
    vocab_size: int
    bos_id: int
    eos_id: int
    token_dtype: str
    """`uint16` or `uint32`."""
    build_digest: str
    """Hash of the build configuration, places on disk left out."""
    content_digest: str
    """Hash of the names and contents of the documents that were kept, in order."""
    splits: dict[str, SplitRecord]
    ledger: BuildLedger
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]
    labels: LabelsRecord | None = None
    """Of a dataset to fine-tune on."""
    chat_template: ChatTemplate | None = None
    """What conversations were written with; null in a dataset of text."""

    @property
    def tokens(self) -> int:
        """Tokens of all splits."""
        return sum(split.tokens for split in self.splits.values())

    def to_bytes(self) -> bytes:
        """Spells the manifest with its checksum; what is null is left out."""
        return seal(_without_nulls(dataclasses.asdict(self)))

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Reads and checks a manifest.

        Args:
            data: Content of the file.
            where: Its path, for messages.

        Raises:
            DatasetDamagedError: Torn, altered, or its numbers contradict each other.
            DatasetError: Written by another version of this program.
        """
        try:
            document = unseal(data, where)
        except SealError as error:
            raise DatasetDamagedError(f"{error} A dataset is rebuilt with `data build CONFIG --fresh`.") from error
        version = document.get("schema_version")
        if version not in (SCHEMA_VERSION, TUNING_SCHEMA_VERSION):
            raise DatasetError(
                f"{where} has schema_version {version!r}; this program reads {SCHEMA_VERSION} and "
                f"{TUNING_SCHEMA_VERSION}. "
                "Use the version that built the dataset, or rebuild it with `data build CONFIG --fresh`."
            )
        try:
            manifest = _record(cls, document)
        except (TypeError, ValueError, KeyError) as error:
            raise DatasetDamagedError(
                f"{where} lacks or misspells a field ({error!r}). Rebuild with `data build CONFIG --fresh`."
            ) from error
        if problem := manifest.problem():
            raise DatasetDamagedError(
                f"{where} contradicts itself: {problem}. Rebuild with `data build CONFIG --fresh`."
            )
        return manifest

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Reads the manifest of a dataset directory; see `from_bytes`."""
        path = directory / MANIFEST_FILE
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            unfinished = "has no manifest.json: it is something else, or its build did not finish"
            state = unfinished if directory.is_dir() else "does not exist"
            raise DatasetError(
                f"There is no dataset at {directory}: the directory {state}. "
                "Check the path, or run `data build CONFIG`."
            ) from error
        return cls.from_bytes(data, str(path))

    def problem(self) -> str | None:
        """Returns the first contradiction between the numbers, or None."""
        for title, ledger in [
            ("build", self.ledger),
            *((source.name, source.ledger) for source in self.sources),
        ]:
            if found := ledger.problem():
                return f"ledger of {title}: {found}"
        for split, record in self.splits.items():
            shards = [shard for shard in self.shards if shard.split == split]
            for field in ("documents", "tokens", "utf8_bytes", "answer_tokens"):
                stated, summed = getattr(record, field) or 0, sum(getattr(shard, field) or 0 for shard in shards)
                if stated != summed:
                    return f"{split} states {stated} {field}, its shards hold {summed}"
            by_source = sum(source.tokens.get(split, 0) for source in self.sources)
            if by_source != record.tokens:
                return f"{split} states {record.tokens} tokens, its sources gave {by_source}"
        if sum(split.documents for split in self.splits.values()) != self.ledger.documents_kept:
            return "the splits' documents are not the documents kept"
        if sum(split.utf8_bytes for split in self.splits.values()) != self.ledger.bytes_kept:
            return "the splits' bytes are not the bytes kept"
        if self.fingerprint != fingerprint_of(self.tokenizer_hash, self.splits, self.labels):
            return "the fingerprint is not that of its tokenizer, splits and labels"
        return self._problem_with_answers()

    def _problem_with_answers(self) -> str | None:
        """Returns whether a part says nothing of answers, or does so in a dataset of text; None where all is well."""
        said = [
            *(split.answer_tokens for split in self.splits.values()),
            *(split.answer_mask_hash for split in self.splits.values()),
            *(shard.answer_tokens for shard in self.shards),
            *(segment.answer_mask_position for shard in self.shards for segment in shard.segments),
        ]
        if {value is not None for value in said} != {self.chat_template is not None}:
            return "answers are counted in some of its parts and not in others"
        return None


def fingerprint_of(tokenizer_hash: str, splits: Mapping[str, SplitRecord], labels: LabelsRecord | None = None) -> str:
    """Returns the identity of a dataset's content: tokenizer, token streams and labels, not shards or names."""
    streams = {
        name: [
            split.tokens,
            split.documents,
            split.tokens_hash,
            *([] if split.answer_mask_hash is None else [split.answer_mask_hash]),
        ]
        for name, split in splits.items()
    }
    labelled = {} if labels is None else {"labels": [labels.kind, list(labels.names), labels.hashes]}
    return digest({"tokenizer": tokenizer_hash, "splits": streams, **labelled})


def _without_nulls(value: Any) -> Any:
    """Leaves out what is null, at every depth: what only datasets of conversations have, others do not name."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _record(kind: type[Record], document: Mapping[str, Any]) -> Record:
    """Builds a record class from JSON, nested ones included; refuses unknown keys, and missing ones without default."""
    hints = get_type_hints(kind)
    optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}  # type: ignore[arg-type]
    if wrong := set(hints) ^ (set(document) | optional):
        raise KeyError(f"{kind.__name__}: {sorted(wrong)}")
    nested: dict[str, Any] = {
        "segments": SegmentRecord,
        "shards": ShardRecord,
        "sources": SourceRecord,
    }
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key in nested:
            values[key] = tuple(_record(nested[key], item) for item in value)
        elif key == "splits":
            values[key] = {name: _record(SplitRecord, item) for name, item in value.items()}
        elif key == "labels":
            values[key] = _record(LabelsRecord, value)
        elif key == "names":
            values[key] = tuple(str(item) for item in value)
        elif key == "counts":
            values[key] = {split: tuple(int(count) for count in counts) for split, counts in value.items()}
        elif key == "chat_template":
            values[key] = _record(ChatTemplate, value)
        elif hints[key] is BuildLedger:
            values[key] = _record(BuildLedger, value)
        elif key == "blocks":
            values[key] = tuple(str(item) for item in value)
        elif (wanted := _PLAIN.get(hints[key])) is not None and type(value) is not wanted:
            raise TypeError(f"{kind.__name__}.{key} is {value!r}, and must be {wanted.__name__}")
        else:
            values[key] = value
    return kind(**values)
