"""What a dataset holds, as tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from data_pipeline.manifest import BuildLedger, Manifest
from data_pipeline.plan import TrainingLedger
from launcher.console import table
from launcher.report.units import plural


def split_table(manifest: Manifest) -> Table:
    """Documents, tokens and bytes of each split."""
    chats = manifest.chat_template is not None
    rows = table("split", "documents", "tokens", *["of answers"] * chats, "UTF-8 bytes", numbers_from=1)
    for name, split in manifest.splits.items():
        answers = [f"{split.answer_tokens:,}"] if split.answer_tokens is not None else []
        rows.add_row(name, f"{split.documents:,}", f"{split.tokens:,}", *answers, f"{split.utf8_bytes:,}")
    return rows


def ledger_table(ledger: BuildLedger) -> Table:
    """Where every document and byte that was read has gone; the lines below the first add up to it."""
    rows = table("ledger", "documents", "UTF-8 bytes", numbers_from=1)
    rows.add_row("read", f"{ledger.documents_read:,}", f"{ledger.bytes_read:,}")
    rows.add_row("kept", f"{ledger.documents_kept:,}", f"{ledger.bytes_kept:,}")
    for reason in sorted(ledger.documents_dropped.keys() | ledger.bytes_dropped.keys()):
        documents, size = ledger.documents_dropped.get(reason, 0), ledger.bytes_dropped.get(reason, 0)
        rows.add_row(f"dropped: {reason}", f"{documents:,}", f"{size:,}")
    rows.add_row("removed by normalisation", "", f"{ledger.bytes_removed_by_normalisation:,}")
    return rows


def token_account(ledger: TrainingLedger) -> str:
    """Where every training token has gone in the epoch in progress, in one line that adds up."""
    return (
        f"tokens  {ledger.dataset}, in epoch {ledger.completed_epochs + 1:,}: "
        f"{ledger.train_tokens:,} train = {ledger.trained_tokens:,} trained"
        f" + {ledger.not_yet_used_tokens:,} not yet used + {ledger.tail_tokens:,} tail"
        f" + {ledger.skipped_tokens:,} skipped; {ledger.validation_tokens:,} validation"
    )


def up_to_date(manifest: Manifest, output: str) -> str:
    """What is said of a build that had nothing to do, and what was looked at to know it."""
    return (
        f"The dataset in {output} is up to date (fingerprint {manifest.fingerprint}): nothing was built. Checked: the "
        f"text, the configuration, the manifest, the tokenizer, the length of {plural(len(manifest.shards), 'shard')}. "
        f"`longhaul data verify {output}` reads every byte."
    )


def source_table(manifest: Manifest) -> Table:
    """What each source gave."""
    splits = list(manifest.splits)
    rows = table("source", "documents", *(f"{split} tokens" for split in splits), numbers_from=1)
    for source in manifest.sources:
        tokens = (f"{source.tokens.get(split, 0):,}" for split in splits)
        rows.add_row(source.name, f"{source.ledger.documents_kept:,}", *tokens)
    return rows


def length_table(histogram: list[dict[str, Any]]) -> Table:
    """How long the documents are, with a bar for each range of lengths."""
    widest = 40
    most = max((entry["documents"] for entry in histogram), default=0)
    rows = table("tokens in a document", "documents", "", numbers_from=1)
    rows.columns[2].justify = "left"
    for entry in histogram:
        bar = "█" * max(1, round(widest * entry["documents"] / most)) if entry["documents"] else ""
        rows.add_row(f"{entry['from_tokens']:,} - {entry['to_tokens'] - 1:,}", f"{entry['documents']:,}", bar)
    return rows
