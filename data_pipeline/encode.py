"""The second pass over the corpora: documents become tokens in shards, and the ledgers are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.config import DataBuildConfig, SourceConfig
from data_pipeline.errors import CorpusError
from data_pipeline.labels import NO_LABEL, LabelCounts, LabelMap, LabelsHash, label_field
from data_pipeline.manifest import SPLITS, BuildLedger, LabelsRecord, ShardRecord, SourceRecord, SplitRecord
from data_pipeline.readers import Word
from data_pipeline.shards import ShardWriter, token_dtype
from data_pipeline.survey import (
    CleanDocument,
    ContentDigest,
    LedgerCounts,
    ProgressCallback,
    ProgressReporter,
    Survey,
    clean_documents,
    summed,
)
from data_pipeline.tokenizer import Tokenizer

_GROUP_BYTES = 1 << 20
"""Text handed to the tokenizer at a time."""


@dataclass(frozen=True)
class EncodedDataset:
    """What was written, and the ledgers of it."""

    splits: dict[str, SplitRecord]
    ledger: BuildLedger
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]
    labels: LabelsRecord | None


class SplitWriter:
    """Writes the documents of one split to shards."""

    def __init__(
        self, split: str, working: Path, dtype: np.dtype[Any], shard_tokens: int, labels: LabelMap | None = None
    ) -> None:
        self.split = split
        self.documents = 0
        self.tokens = 0
        self.utf8_bytes = 0
        self.shards: list[ShardRecord] = []
        self._working = working
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self.label_counts = LabelCounts()
        self.labels_hash = LabelsHash()
        self._label_map = labels
        self._writer: ShardWriter | None = None
        self._hash = xxhash.xxh3_128()

    def add(self, document: CleanDocument, tokens: npt.NDArray[Any], last_pieces: list[int] | None = None) -> None:
        """Appends a document with its BOS and EOS.

        Args:
            document: What it is.
            tokens: Of its text, framed.
            last_pieces: Where each word ends in them, if words have labels: a causal model has read it there.
        """
        field = None if self._label_map is None else label_field(self._label_map.kind)
        if self._writer is None:
            self._writer = ShardWriter(self._working / self._file, self._dtype, field)
        label = None if self._label_map is None else self._label(self._label_map, document, len(tokens), last_pieces)
        self._writer.add(tokens, document.document_id, document.source, document.size_bytes, label)
        self._hash.update(tokens.data)
        self.documents += 1
        self.tokens += len(tokens)
        self.utf8_bytes += document.size_bytes
        if self._writer.tokens >= self._shard_tokens:
            self._finish_shard()

    def _label(self, names: LabelMap, document: CleanDocument, length: int, last_pieces: list[int] | None) -> Any:
        """What stands in the label's column, counted and hashed."""
        assert document.label is not None
        self.label_counts.add(document.label)
        number = names.number(document.label)
        if last_pieces is not None:
            placed = np.full(length, NO_LABEL, dtype=np.int32)
            placed[last_pieces] = number
            number = placed.tolist()
        self.labels_hash.add(number)
        return number

    def finish(self) -> SplitRecord:
        """Closes the last shard and describes the split."""
        self._finish_shard()
        return SplitRecord(
            documents=self.documents,
            tokens=self.tokens,
            utf8_bytes=self.utf8_bytes,
            tokens_hash=self._hash.hexdigest(),
        )

    def abandon(self) -> None:
        """Closes an unfinished shard as it is."""
        if self._writer is not None:
            self._writer.abandon()

    @property
    def _file(self) -> str:
        return f"shards/{self.split}-{len(self.shards):05d}.arrow"

    def _finish_shard(self) -> None:
        if self._writer is not None:
            self.shards.append(self._writer.finish(self._file, self.split))
            self._writer = None


def encode_corpus(
    config: DataBuildConfig,
    survey: Survey,
    tokenizer: Tokenizer,
    working: Path,
    progress: ProgressCallback | None = None,
    threads: int = 1,
) -> EncodedDataset:
    """Encodes all sources into shards under `working`.

    Raises:
        CorpusError: The corpora changed since the survey.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    labels = None if config.labels is None else LabelMap(config.labels.kind, survey.label_names)
    writers = {split: SplitWriter(split, working, dtype, config.shard_tokens, labels) for split in SPLITS}
    reporter = ProgressReporter(progress, "encoding", survey.ledger.bytes_kept)
    content, sources = ContentDigest(), []
    try:
        for source in config.sources:
            counts, tokens = LedgerCounts(), dict.fromkeys(SPLITS, 0)
            for group in _groups(source, config, counts):
                encoded = _encode(group, tokenizer, threads)
                for document, (ids, last_pieces) in zip(group, encoded, strict=True):
                    framed = _framed(ids, tokenizer).astype(dtype)
                    split = survey.split_of(document)
                    writers[split].add(document, framed, last_pieces)
                    counts.kept(document.size_bytes)
                    tokens[split] += len(framed)
                    content.add(document)
                    reporter.add(document.size_bytes, sum(writer.tokens for writer in writers.values()))
            sources.append(SourceRecord(name=source.name, ledger=counts.ledger(), tokens=tokens))
        reporter.finish()
        splits = {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()
    if content.hexdigest() != survey.content_digest:
        raise CorpusError(
            f"The text of {config.name!r} changed while it was built: the second reading differs from the "
            "first. "
            "Run the build again when the files are at rest."
        )
    shards = tuple(shard for writer in writers.values() for shard in writer.shards)
    labelled = None if labels is None else _labels_record(labels, writers)
    return EncodedDataset(splits, summed([record.ledger for record in sources]), tuple(sources), shards, labelled)


def _labels_record(labels: LabelMap, writers: dict[str, SplitWriter]) -> LabelsRecord:
    return LabelsRecord(
        kind=labels.kind,
        names=labels.names,
        counts={split: writer.label_counts.of(labels.names) for split, writer in writers.items()},
        hashes={split: writer.labels_hash.hexdigest() for split, writer in writers.items()},
    )


def _encode(
    group: list[CleanDocument], tokenizer: Tokenizer, threads: int
) -> list[tuple[npt.NDArray[Any], list[int] | None]]:
    """Tokens of each document, and the last one of each of its words, counted with BOS before them."""
    if group[0].words is None:
        return [(ids, None) for ids in tokenizer.encode_batch([document.text for document in group], threads)]
    return [_encode_words(document, tokenizer, threads) for document in group]


def _encode_words(document: CleanDocument, tokenizer: Tokenizer, threads: int) -> tuple[npt.NDArray[Any], list[int]]:
    assert document.words is not None
    encoded = _by_word(document.words, tokenizer, threads)
    for word, ids in zip(document.words, encoded, strict=True):
        if not len(ids):
            raise CorpusError(
                f"Source {document.source!r}: the word {word.text!r} of {document.document_id} gives no token, so that "
                "its label has no place. Mend or remove it."
            )
    return np.concatenate(encoded), _ends(encoded)


def framed_text(text: str, tokenizer: Tokenizer) -> npt.NDArray[Any]:
    """Returns the tokens of a text as a document of a dataset has them: BOS, text, EOS. Shape: (tokens,)."""
    return _framed(tokenizer.encode(text), tokenizer)


def framed_words(words: Sequence[Word], tokenizer: Tokenizer) -> tuple[npt.NDArray[Any], list[int]]:
    """Returns the tokens of a document whose words are labelled, and the place of each word's last one."""
    encoded = _by_word(words, tokenizer)
    return _framed(np.concatenate(encoded), tokenizer), _ends(encoded)


def _framed(ids: npt.NDArray[Any], tokenizer: Tokenizer) -> npt.NDArray[Any]:
    return np.concatenate(([tokenizer.bos_id], ids, [tokenizer.eos_id]))


def _by_word(words: Sequence[Word], tokenizer: Tokenizer, threads: int = 1) -> list[npt.NDArray[Any]]:
    """Each word by itself, so that no piece belongs to two of them."""
    before = [False, *(word.space_after for word in words[:-1])]
    spelled = [
        " " + word.text if space and not tokenizer.adds_space else word.text
        for word, space in zip(words, before, strict=True)
    ]
    return list(tokenizer.encode_batch(spelled, threads))


def _ends(encoded: Sequence[npt.NDArray[Any]]) -> list[int]:
    """The last token of each word, counted with BOS before them."""
    ends: list[int] = np.cumsum([len(ids) for ids in encoded]).tolist()
    return ends


def _groups(source: SourceConfig, config: DataBuildConfig, counts: LedgerCounts) -> Iterator[list[CleanDocument]]:
    """Gathers documents until they hold about a megabyte."""
    group: list[CleanDocument] = []
    size = 0
    for document in clean_documents(source, config, counts):
        group.append(document)
        size += document.size_bytes
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
