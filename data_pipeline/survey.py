"""The first pass over the corpora: what is kept, on which side of the split, and the tokenizer's sample."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.chat_template import Turn
from data_pipeline.cleaning import CONVERSATION_DROP_REASONS, DROP_REASONS, clean
from data_pipeline.config import DataBuildConfig, SourceConfig
from data_pipeline.errors import CorpusError
from data_pipeline.labels import Label, LabelCounts
from data_pipeline.manifest import BuildLedger
from data_pipeline.publish import canonical_json
from data_pipeline.raw_document import RawDocument, Word
from data_pipeline.readers import read_documents
from data_pipeline.tokenizer import TrainingSample

REPORT_EVERY_BYTES = 4 << 20
"""Bytes read between two reports of progress."""


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is."""

    stage: str
    """`reading`, `tokenizer`, `encoding` or `publishing`; `up to date` where there was nothing to build."""
    documents: int
    """Documents read in this stage."""
    bytes: int
    """Bytes of text read in this stage."""
    tokens: int = 0
    """Tokens written."""
    total_bytes: int | None = None
    """Bytes that this stage will read, where known."""


ProgressCallback = Callable[[BuildProgress], None]


class LedgerCounts:
    """Counts documents and bytes of a source while they pass; what is kept is counted apart, where it is kept."""

    def __init__(self, source: SourceConfig) -> None:
        self._reasons = CONVERSATION_DROP_REASONS if source.holds_conversations else DROP_REASONS
        self.documents_read = 0
        self.documents_kept = 0
        self.bytes_read = 0
        self.bytes_kept = 0
        self.bytes_removed = 0
        self._documents_dropped: Counter[str] = Counter()
        self._bytes_dropped: Counter[str] = Counter()

    def read(self, size: int) -> None:
        """Counts a document read."""
        self.documents_read += 1
        self.bytes_read += size

    def dropped(self, size: int, reason: str) -> None:
        """Counts a document dropped."""
        self._documents_dropped[reason] += 1
        self._bytes_dropped[reason] += size

    def kept(self, size: int) -> None:
        """Counts a document kept, by the size of its normalised text."""
        self.documents_kept += 1
        self.bytes_kept += size

    def ledger(self) -> BuildLedger:
        """Returns the counts."""
        return BuildLedger(
            documents_read=self.documents_read,
            documents_kept=self.documents_kept,
            documents_dropped={reason: self._documents_dropped[reason] for reason in self._reasons},
            bytes_read=self.bytes_read,
            bytes_kept=self.bytes_kept,
            bytes_dropped={reason: self._bytes_dropped[reason] for reason in self._reasons},
            bytes_removed_by_normalisation=self.bytes_removed,
        )


def summed(ledgers: list[BuildLedger]) -> BuildLedger:
    """Adds the ledgers of a build's sources up."""
    reasons = tuple(ledgers[0].documents_dropped)
    return BuildLedger(
        documents_read=sum(ledger.documents_read for ledger in ledgers),
        documents_kept=sum(ledger.documents_kept for ledger in ledgers),
        documents_dropped={r: sum(ledger.documents_dropped[r] for ledger in ledgers) for r in reasons},
        bytes_read=sum(ledger.bytes_read for ledger in ledgers),
        bytes_kept=sum(ledger.bytes_kept for ledger in ledgers),
        bytes_dropped={r: sum(ledger.bytes_dropped[r] for ledger in ledgers) for r in reasons},
        bytes_removed_by_normalisation=sum(ledger.bytes_removed_by_normalisation for ledger in ledgers),
    )


@dataclass(frozen=True)
class CleanDocument:
    """A document that is kept."""

    document_id: str
    source: str
    text: str
    """Of a conversation, as the chat template writes it."""
    size_bytes: int
    """UTF-8 bytes of the text; of a conversation, of what its turns say."""
    hash: int
    """xxh3_64 of the text, or of the turns: equal documents fall on the same side of the split."""
    turns: tuple[Turn, ...] | None = None
    """Of a conversation."""
    label: Label | None = None
    words: tuple[Word, ...] | None = None
    """Where each word has a label."""


@dataclass(frozen=True)
class Survey:
    """What the first pass found."""

    ledger: BuildLedger
    content_digest: str
    """Hash of the kept documents' names and contents, in order."""
    validation_below: int
    """Documents whose hash is below this are validation."""
    label_names: tuple[str, ...]
    """Classes in the order of the model's outputs; none where there are no labels, or numbers."""
    sample: TrainingSample | None = field(repr=False)

    def split_of(self, document: CleanDocument) -> str:
        """Returns the side of the split that a document falls on."""
        return "validation" if document.hash < self.validation_below else "train"

    def sample_texts(self) -> Iterator[str]:
        """Yields the texts to train a tokenizer on."""
        return iter(()) if self.sample is None else self.sample.texts()


class ContentDigest:
    """Running hash of documents' names and contents."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def add(self, document: CleanDocument) -> None:
        """Adds a document."""
        self._state.update(f"{document.source}\0{document.document_id}\0{document.hash:016x}\0".encode())
        if document.label is not None:
            self._state.update(f"{document.label!r}\0".encode(errors="surrogatepass"))

    def hexdigest(self) -> str:
        """Returns the hash so far."""
        return self._state.hexdigest()


def clean_documents(source: SourceConfig, config: DataBuildConfig, counts: LedgerCounts) -> Iterator[CleanDocument]:
    """Reads and cleans a source, counting what is read and dropped, and what normalisation removed."""
    for document in read_documents(source, config.labels):
        counts.read(len(document.data))
        if (kept := _cleaned(document, config, counts)) is not None:
            yield kept


def _cleaned(document: RawDocument, config: DataBuildConfig, counts: LedgerCounts) -> CleanDocument | None:
    result = clean(document, config.cleaning)
    if result.text is None:
        counts.dropped(len(document.data), str(result.reason))
        return None
    data, text = result.text.encode(), result.text
    counts.bytes_removed += len(document.data) - len(data)
    size = len(data)
    if result.turns is not None and config.template is not None:
        data = canonical_json([[turn.role, turn.content] for turn in result.turns])
        text = config.template.text(result.turns)
    return CleanDocument(
        document_id=document.document_id,
        source=document.source,
        text=text,
        size_bytes=size,
        hash=xxhash.xxh3_64_intdigest(data),
        turns=result.turns,
        label=document.label,
        words=result.words,
    )


def survey_corpus(config: DataBuildConfig, progress: ProgressCallback | None = None) -> Survey:
    """Reads all sources once.

    Args:
        config: The build.
        progress: Told every few megabytes.

    Raises:
        CorpusError: A source cannot be read, or nothing is kept.
    """
    options = config.tokenizer.train
    sample = None if options is None else TrainingSample(options.max_training_bytes, options.seed)
    hashes, content, ledgers = array("Q"), ContentDigest(), []
    labels = None if config.labels is None else LabelCounts()
    reporter = ProgressReporter(progress, "reading")
    for source in config.sources:
        counts = LedgerCounts(source)
        for document in clean_documents(source, config, counts):
            counts.kept(document.size_bytes)
            content.add(document)
            hashes.append(document.hash)
            if sample is not None:
                sample.add(document.text)
            if labels is not None and document.label is not None:
                labels.add(document.label)
            reporter.add(document.size_bytes)
        ledgers.append(counts.ledger())
    reporter.finish()
    ledger = summed(ledgers)
    if not hashes:
        reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.documents_dropped.items() if count)
        raise CorpusError(
            f"No document of {config.name!r} is left after cleaning: {ledger.documents_read} read, "
            f"{reasons}. "
            "Check the sources' fields, or loosen `cleaning`."
        )
    below = validation_threshold(np.frombuffer(hashes, dtype=np.uint64), config.validation_fraction)
    names = () if labels is None or config.labels is None else labels.names(config.labels)
    return Survey(ledger, content.hexdigest(), below, names, sample)


def validation_threshold(hashes: npt.NDArray[np.uint64], fraction: float) -> int:
    """Chooses the hash below which a document is validation.

    A share of the hash range, so that a document's side does not depend on the other documents. Where that
    leaves a side empty, validation gets the smallest hashes, or train keeps the largest.

    Args:
        hashes: Of all kept documents. Shape: (documents,).
        fraction: Share held out.

    Returns:
        The threshold, 0 for no validation.
    """
    below = int(fraction * 2**64)
    distinct = np.unique(hashes)
    if fraction == 0 or len(distinct) < 2:
        return 0
    inside = (
        int((distinct.astype(object) < below).sum()) if below >= 1 << 63 else int((distinct < np.uint64(below)).sum())
    )
    if inside == 0:
        wanted = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)
        return int(distinct[wanted])
    return int(distinct[-1]) if inside == len(distinct) else below


class ProgressReporter:
    """Passes on progress every few megabytes."""

    def __init__(self, progress: ProgressCallback | None, stage: str, total_bytes: int | None = None) -> None:
        self._progress = progress
        self._stage = stage
        self._total = total_bytes
        self._documents = self._bytes = self._tokens = self._reported = 0

    def add(self, size: int, tokens: int = 0) -> None:
        """Counts a document; `tokens` is the number written so far."""
        self._documents += 1
        self._bytes += size
        self._tokens = tokens
        if self._bytes - self._reported >= REPORT_EVERY_BYTES:
            self.finish()

    def finish(self) -> None:
        """Reports the numbers as they stand."""
        self._reported = self._bytes
        if self._progress is not None:
            self._progress(BuildProgress(self._stage, self._documents, self._bytes, self._tokens, self._total))
