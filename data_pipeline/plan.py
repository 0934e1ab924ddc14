"""The data plan: everything that fixes the sequences of global batch s, and the ledger of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.batch_sizes import BatchSizes, BatchSizeStage
from data_pipeline.chat_template import ChatTemplate
from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import OrderError
from data_pipeline.order import SequenceOrder, Shuffle, SourceRows
from data_pipeline.publish import digest
from data_pipeline.rows import Rows, cut_rows
from data_pipeline.skip_ledger import SkipLedger

Int64Array = npt.NDArray[np.int64]

ORDER_VERSION = 1
"""Raised by every change of code that alters the order of sequences."""


@dataclass(frozen=True, kw_only=True)
class TrainingLedger:
    """Tokens of one dataset, for the epoch in progress.

    dataset = train + validation; train = trained + not_yet_used + tail + skipped.
    """

    dataset: str
    """Name of the dataset."""
    dataset_tokens: int
    train_tokens: int
    validation_tokens: int
    completed_epochs: int
    """Epochs of which every row was trained or skipped."""
    trained_tokens: int
    """Tokens that were targets in this epoch."""
    not_yet_used_tokens: int
    tail_tokens: int
    """What no sequence predicts: the stream's first token and its end, too short for a row; with packing `documents`
    the first token of each sequence; with packing `examples` what is cut off documents that are too long."""
    skipped_tokens: int
    """Left out by healing in this epoch."""

    def problem(self) -> str | None:
        """Returns how the ledger fails to add up, or None."""
        if self.dataset_tokens != self.train_tokens + self.validation_tokens:
            return f"{self.dataset}: {self.dataset_tokens} tokens are not train + validation"
        parts = self.trained_tokens + self.not_yet_used_tokens + self.tail_tokens + self.skipped_tokens
        if self.train_tokens != parts:
            return f"{self.dataset}: {self.train_tokens} train tokens, but {parts} accounted for"
        return None


class DataPlan:
    """What is trained on, in which order.

    Args:
        datasets: The opened datasets, in the order of `config.entries`.
        config: Sequence length, mixture, shuffle.
        seed: Keys the order.
        global_batch_size: Sequences of one optimizer step, after the warm-up.
        batch_size_warmup: Stages of smaller batches before.
        answers_only: Learn the answers of conversations, and nothing of what is given.

    Raises:
        OrderError: The datasets do not fit each other or the configuration.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        config: DataConfig,
        *,
        seed: int,
        global_batch_size: int,
        batch_size_warmup: Sequence[BatchSizeStage] = (),
        answers_only: bool = False,
    ) -> None:
        self.datasets = tuple(datasets)
        self.config = config
        self.seed = seed
        if len(self.datasets) != len(config.entries):
            raise OrderError(
                f"{len(self.datasets)} datasets were opened for {len(config.entries)} entries of data.dataset."
            )
        if global_batch_size < 1:
            raise OrderError(f"global_batch_size is {global_batch_size}, and must be at least 1 sequence.")
        self.batch_sizes = BatchSizes(global_batch_size, tuple(batch_size_warmup))
        _check_tokenizers(self.datasets)
        self.answers_only = answers_only
        if answers_only:
            _check_answers(self.datasets)
        if config.packing == "examples":
            _check_labels(self.datasets)
        self.cuts = _cuts(self.datasets, config)
        """Where the sequences of each dataset lie in its stream."""
        self.rows = tuple(cuts.count for cuts in self.cuts)
        """Sequences in one epoch of each dataset."""
        weights = [
            float(rows if entry.weight is None else entry.weight)
            for entry, rows in zip(config.entries, self.rows, strict=True)
        ]
        self.order = SequenceOrder(
            [
                SourceRows(key=dataset.fingerprint, rows=rows, weight=weight, max_epochs=entry.max_epochs)
                for dataset, rows, weight, entry in zip(self.datasets, self.rows, weights, config.entries, strict=True)
            ],
            seed=seed,
            stages=config.stages,
            shuffle=Shuffle(config.shuffle_block_sequences, config.shuffle_window_blocks),
        )
        self.total_sequences = self.order.total_sequences
        """Sequences until every dataset is exhausted; None is without end."""

    def describe(self) -> dict[str, Any]:
        """Returns everything that fixes the order but the seed, as JSON, to be compared key by key."""
        config = self.config
        warmup = [[stage.until_step, stage.global_batch_size] for stage in self.batch_sizes.warmup]
        # What is not used is not named, so that plans from before there was such a thing keep their fingerprints.
        weights = None if config.class_weights == "none" else config.class_weights
        used = {
            "batch_size_warmup": warmup,
            "begins_after_step": config.begins_after_step,
            "answers_only": self.answers_only,
            "class_weights": weights,
        }
        return {
            "order_version": ORDER_VERSION,
            "tokenizer": self.datasets[0].tokenizer_hash,
            "datasets": [
                {"fingerprint": dataset.fingerprint, "weight": source.weight, "max_epochs": source.max_epochs}
                for dataset, source in zip(self.datasets, self.order.sources, strict=True)
            ],
            "stages": [{"sequences": stage.sequences, "weights": list(stage.weights)} for stage in config.stages],
            "seq_len": config.seq_len,
            "packing": config.packing,
            "document_mask": config.document_mask,
            "global_batch_size": self.batch_sizes.final,
            "shuffle_block_sequences": config.shuffle_block_sequences,
            "shuffle_window_blocks": config.shuffle_window_blocks,
            **{key: value for key, value in used.items() if value},
        }

    @property
    def fingerprint(self) -> str:
        """Hash of `describe()`."""
        return digest(self.describe())

    def batch_indices(self, step: int, skips: SkipLedger) -> Int64Array:
        """Returns the logical indices of global batch `step`, counted from 1. Shape: (B,)."""
        if step < 1:
            raise OrderError(f"Step {step} was asked for: optimizer steps count from 1.")
        return skips.logical(np.arange(self._read_after(step - 1), self._read_after(step), dtype=np.int64))

    def position_after(self, step: int, skips: SkipLedger) -> int:
        """Returns the data position after optimizer step `step`: the logical index that is read next."""
        return skips.position_after(self._read_after(step))

    def check_steps(self, max_steps: int, skips: SkipLedger | None = None) -> None:
        """Raises where the data ends before `max_steps` optimizer steps.

        Raises:
            OrderError: States how many steps are possible.
        """
        if self.total_sequences is None:
            return
        usable = self.total_sequences - (skips or SkipLedger()).skipped_before(self.total_sequences)
        possible = self.batch_sizes.steps_within(usable + self.batch_sizes.through(self.config.begins_after_step))
        if max_steps > possible:
            raise OrderError(
                f"train.max_steps is {max_steps} at {self.batch_sizes} sequences a step, but "
                "max_epochs ends the "
                f"data after {usable} sequences: {possible} steps are possible. Lower max_steps, or raise "
                "max_epochs "
                "of a dataset (null is without limit)."
            )

    def ledger(self, step: int, skips: SkipLedger) -> tuple[TrainingLedger, ...]:
        """Accounts for every token of every dataset after optimizer step `step` (0 is before the first).

        Raises:
            OrderError: The ledger does not add up, which would be a defect of this program.
        """
        position = self.position_after(step, skips)
        reached = self.order.consumed(position)
        floors = np.array([max(0, n - 1) // rows * rows for n, rows in zip(reached.tolist(), self.rows, strict=True)])
        skipped = np.zeros(len(self.rows), dtype=np.int64)
        for start, stop in skips.intervals:
            if start < position:
                begin, end = self.order.consumed(start), self.order.consumed(min(stop, position))
                begin, end = np.maximum(begin, floors), np.maximum(end, floors)
                skipped += [self._targets(number, begin[number], end[number]) for number in range(len(self.rows))]
        ledgers = tuple(
            self._ledger(number, int(reached[number]), int(floors[number]), int(skipped[number]))
            for number in range(len(self.rows))
        )
        for entry in ledgers:
            if problem := entry.problem():
                raise OrderError(
                    f"The training ledger does not add up after step {step}: {problem}. Please report this."
                )
        return ledgers

    def _read_after(self, step: int) -> int:
        """Sequences of this plan that were read when optimizer step `step` has been made."""
        before = self.config.begins_after_step
        if step < before:
            raise OrderError(
                f"The sequences of step {step} were asked for, and this data begins after step {before} "
                "(data.begins_after_step): the steps before were made on other data, by the run that this one "
                "branched from."
            )
        return self.batch_sizes.through(step) - self.batch_sizes.through(before)

    def _targets(self, number: int, first: int, stop: int) -> int:
        """Targets of the sequences of a dataset with the ordinals [first, stop)."""
        if self.config.packing == "stream":
            return int(stop - first) * self.config.seq_len
        return self.cuts[number].targets_of(self.order.rows_at(number, np.arange(first, stop, dtype=np.int64)))

    def _ledger(self, number: int, reached: int, floor: int, skipped: int) -> TrainingLedger:
        dataset, targets = self.datasets[number], self.cuts[number].targets
        train, in_epoch = dataset.split("train").tokens, self._targets(number, floor, reached)
        return TrainingLedger(
            dataset=dataset.name,
            dataset_tokens=dataset.manifest.tokens,
            train_tokens=train,
            validation_tokens=dataset.split("validation").tokens,
            completed_epochs=reached // self.rows[number],
            trained_tokens=in_epoch - skipped,
            not_yet_used_tokens=targets - in_epoch,
            tail_tokens=train - targets,
            skipped_tokens=skipped,
        )


def _check_tokenizers(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if other.tokenizer_hash != first.tokenizer_hash:
            raise OrderError(
                f"The datasets were built with different tokenizers: {first.directory} with "
                f"{first.tokenizer_hash}, "
                f"{other.directory} with {other.tokenizer_hash}. Rebuild one with `tokenizer: {{path: "
                f"{first.directory / 'tokenizer.model'}}}`."
            )


def _check_answers(datasets: Sequence[Dataset]) -> None:
    for dataset in datasets:
        if dataset.chat_template is None:
            raise OrderError(
                f"task is instruction, and {dataset.directory} holds text, in which nothing is an answer to learn. "
                "Build a dataset of conversations (messages_field, or prompt_field and answer_field, of its sources), "
                "or set task: pretrain, which learns every token."
            )
    if len({dataset.chat_template for dataset in datasets}) > 1:
        raise OrderError(
            f"The datasets were built with different chat templates: {_differing(datasets)}. The model would not know "
            "which to answer in. Rebuild one with the other's chat_template."
        )


def _differing(datasets: Sequence[Dataset]) -> str:
    first = datasets[0]
    other = next(dataset for dataset in datasets if dataset.chat_template != first.chat_template)
    return f"{first.directory} with {first.chat_template}, {other.directory} with {other.chat_template}"


def shared_chat_template(datasets: Sequence[Dataset]) -> ChatTemplate | None:
    """Returns what the conversations of all datasets were written with; None where there is none, or not one alone."""
    templates = {dataset.chat_template for dataset in datasets} - {None}
    return templates.pop() if len(templates) == 1 else None


def _check_labels(datasets: Sequence[Dataset]) -> None:
    first = datasets[0].labels
    for other in datasets[1:]:
        if (first.kind, first.names) != (other.labels.kind, other.labels.names):
            raise OrderError(
                f"{datasets[0].directory} is labelled with {first.kind} {list(first.names)}, and {other.directory} "
                f"with {other.labels.kind} {list(other.labels.names)}: one model cannot learn both. Give both builds "
                "the same `labels.names`, or leave one dataset out."
            )


def _cuts(datasets: Sequence[Dataset], config: DataConfig) -> tuple[Rows, ...]:
    cuts = tuple(cut_rows(dataset.split("train"), config.seq_len, config.packing) for dataset in datasets)
    for dataset, rows in zip(datasets, cuts, strict=True):
        if rows.count < 1:
            tokens = dataset.split("train").tokens
            raise OrderError(
                f"data.seq_len is {config.seq_len}, but {dataset.directory} has only {tokens} train tokens: a "
                "sequence reads "
                f"seq_len + 1. The largest possible seq_len is {max(tokens - 1, 0)}; choose a smaller one "
                "or more text."
            )
    return cuts
