"""The second pass over the corpora: documents become tokens in shards, and the ledgers are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.chat_template import ChatTemplate
from data_pipeline.chat_tokens import join_segments
from data_pipeline.config import DataBuildConfig, SourceConfig
from data_pipeline.errors import CorpusError
from data_pipeline.labels import NO_LABEL, LabelCounts, LabelMap, LabelsHash, label_field
from data_pipeline.manifest import SPLITS, BuildLedger, LabelsRecord, ShardRecord, SourceRecord, SplitRecord
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
from data_pipeline.word_tokens import framed, framed_words

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


@dataclass(frozen=True, eq=False)
class EncodedDocument:
    """A document as it goes into a shard."""

    tokens: npt.NDArray[Any]
    """With BOS and EOS, in the shard's type. Shape: (tokens,)."""
    answer_mask: npt.NDArray[np.uint8] | None
    """Of a conversation: 1 where the token is an answer's. Shape: (tokens,)."""
    word_ends: list[int] | None = None
    """Where words have labels: the place of each one's last token, at which a causal model has read it."""


class SplitWriter:
    """Writes the documents of one split to shards."""

    def __init__(
        self,
        split: str,
        working: Path,
        dtype: np.dtype[Any],
        shard_tokens: int,
        *,
        with_answers: bool,
        labels: LabelMap | None = None,
    ) -> None:
        self.split = split
        self.documents = 0
        self.tokens = 0
        self.answer_tokens = 0
        self.utf8_bytes = 0
        self.shards: list[ShardRecord] = []
        self._working = working
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self.label_counts = LabelCounts()
        self.labels_hash = LabelsHash()
        self._labels = labels
        self._writer: ShardWriter | None = None
        self._with_answers = with_answers
        self._hash = xxhash.xxh3_128()
        self._mask_hash = xxhash.xxh3_128()

    def add(self, document: CleanDocument, encoded: EncodedDocument) -> None:
        """Appends a document."""
        if self._writer is None:
            column = None if self._labels is None else label_field(self._labels.kind)
            self._writer = ShardWriter(
                self._working / self._file, self._dtype, with_answers=self._with_answers, labels=column
            )
        tokens, answer_mask = encoded.tokens, encoded.answer_mask
        label = None if self._labels is None else self._label(self._labels, document, encoded)
        self._writer.add(tokens, document.document_id, document.source, document.size_bytes, answer_mask, label)
        self._hash.update(tokens.data)
        if answer_mask is not None:
            self._mask_hash.update(answer_mask.data)
            self.answer_tokens += int(answer_mask.sum())
        self.documents += 1
        self.tokens += len(tokens)
        self.utf8_bytes += document.size_bytes
        if self._writer.tokens >= self._shard_tokens:
            self._finish_shard()

    def _label(self, names: LabelMap, document: CleanDocument, encoded: EncodedDocument) -> Any:
        """What stands in the label's column, counted and hashed."""
        assert document.label is not None
        self.label_counts.add(document.label)
        number = names.number(document.label)
        if encoded.word_ends is not None:
            placed = np.full(len(encoded.tokens), NO_LABEL, dtype=np.int32)
            placed[encoded.word_ends] = number
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
            answer_tokens=self.answer_tokens if self._with_answers else None,
            answer_mask_hash=self._mask_hash.hexdigest() if self._with_answers else None,
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
    writers = {
        split: SplitWriter(
            split, working, dtype, config.shard_tokens, with_answers=config.template is not None, labels=labels
        )
        for split in SPLITS
    }
    reporter = ProgressReporter(progress, "encoding", survey.ledger.bytes_kept)
    content, sources = ContentDigest(), []
    try:
        for source in config.sources:
            counts, tokens = LedgerCounts(source), dict.fromkeys(SPLITS, 0)
            for group in _groups(source, config, counts):
                for document, encoded in zip(group, _encoded(group, config, tokenizer, dtype, threads), strict=True):
                    split = survey.split_of(document)
                    writers[split].add(document, encoded)
                    counts.kept(document.size_bytes)
                    tokens[split] += len(encoded.tokens)
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


def _encoded(
    group: Sequence[CleanDocument], config: DataBuildConfig, tokenizer: Tokenizer, dtype: np.dtype[Any], threads: int
) -> Iterator[EncodedDocument]:
    """Encodes documents: BOS, the text, EOS; of a conversation BOS, its turns, EOS behind every answer."""
    if config.template is not None:
        yield from _encoded_conversations(group, config.template, tokenizer, dtype, threads)
        return
    if group[0].words is not None:
        for document in group:
            where = f"Source {document.source!r}: {document.document_id}"
            tokens, ends = framed_words(document.words or (), tokenizer, where)
            yield EncodedDocument(tokens.astype(dtype), None, ends)
        return
    for ids in tokenizer.encode_batch([document.text for document in group], threads):
        yield EncodedDocument(framed(ids, tokenizer).astype(dtype), None)


def _encoded_conversations(
    group: Sequence[CleanDocument], template: ChatTemplate, tokenizer: Tokenizer, dtype: np.dtype[Any], threads: int
) -> Iterator[EncodedDocument]:
    segments = [template.segments(document.turns or ()) for document in group]
    encoded = iter(tokenizer.encode_batch([part.text for parts in segments for part in parts], threads))
    for parts in segments:
        ids = [next(encoded) for _ in parts]
        chat = join_segments(parts, ids, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
        yield EncodedDocument(chat.tokens.astype(dtype), chat.answer_mask)


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
