"""What a user may say about text, tokenizer, datasets and their order."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.chat_template import ChatTemplate
from data_pipeline.config_rules import STRICT
from data_pipeline.label_config import LabelsConfig

CONVERSATION_FIELDS = ("messages_field", "prompt_field", "answer_field", "instruction")
"""Fields of a source of conversations, null in one of text."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus: a file, a directory or a glob pattern of files of one format, gzipped or not."""

    __pydantic_config__ = STRICT

    name: str
    """Label that every document of this source carries."""
    path: str
    """File, directory (read recursively) or glob pattern."""
    format: Literal["auto", "text", "jsonl", "csv", "parquet", "conllu"] = "auto"
    """`auto` goes by the ending: .txt, .md, .text are text; .jsonl, .ndjson JSON lines; .csv, .tsv, .parquet tables;
    .conllu tagged sentences (.gz allowed, but of Parquet). Of a directory it reads text and JSON lines alone."""
    text_field: str = "text"
    """Key of the document's text in a JSON line, or column of a table; of its words where each has a label."""
    id_field: str | None = None
    """Key or column of the document's name; null names documents by file and line, in CoNLL-U by `sent_id`."""
    document_separator: str | None = None
    """Regular expression (multi-line mode): text is cut before each match. Null: one file, one document."""
    messages_field: str | None = None
    """Key of a conversation in a JSON line, a list of {role, content} with the roles system, user and assistant. Null:
    the source holds text, or pairs."""
    prompt_field: str | None = None
    """Key of the question in a JSON line that holds a pair, which becomes a conversation of two turns."""
    answer_field: str | None = None
    """Key of the answer to it."""
    instruction: str | None = None
    """Text on a line of its own before the question of every pair, as in `Translate into Chinese.`"""

    @property
    def holds_conversations(self) -> bool:
        """Whether its documents are conversations, whose answers are told apart from what is given."""
        return self.messages_field is not None or self.prompt_field is not None

    def __post_init__(self) -> None:
        self._check_conversations()
        if self.document_separator is not None:
            try:
                re.compile(self.document_separator)
            except re.error as error:
                raise ValueError(
                    f"document_separator {self.document_separator!r} is not a regular expression: {error}."
                ) from error

    def _check_conversations(self) -> None:
        if (self.prompt_field is None) != (self.answer_field is None):
            raise ValueError(
                f"prompt_field is {self.prompt_field!r} and answer_field {self.answer_field!r}: a pair has both. Name "
                "the other key too, or leave both out."
            )
        if self.messages_field is not None and self.prompt_field is not None:
            raise ValueError(
                f"messages_field is {self.messages_field!r} and prompt_field {self.prompt_field!r}: a line holds "
                "messages or a pair. Leave one of them out."
            )
        if self.instruction is not None and self.prompt_field is None:
            raise ValueError(
                f"instruction is {self.instruction!r}, and goes before the prompt of pairs, which this source does not "
                "hold. Name prompt_field and answer_field, or leave instruction out."
            )
        of_text = self.format == "text" or self.document_separator is not None or self.text_field != "text"
        if self.holds_conversations and of_text:
            raise ValueError(
                "conversations are read from JSON lines, and format: text, a document_separator or a text_field say "
                "that the source holds text. Leave these out, or messages_field and prompt_field."
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainingConfig:
    """How a SentencePiece model is trained."""

    __pydantic_config__ = STRICT

    model_type: Literal["bpe", "unigram"] = "bpe"
    """Segmentation algorithm."""
    vocab_size: int = 4096
    """Pieces, the 256 byte pieces and 4 control pieces included."""
    character_coverage: float = 0.9995
    """Share of the text's characters that become pieces of their own; the others are spelled in bytes."""
    max_training_bytes: int = 100_000_000
    """Text seen by the trainer; a larger corpus is sampled by document hash, so the choice is repeatable."""
    seed: int = 0
    """Key of the sampling hash."""

    def __post_init__(self) -> None:
        if self.vocab_size < 300:
            raise ValueError(
                f"vocab_size is {self.vocab_size}: 256 byte pieces and 4 control pieces leave no room below 300."
            )
        if not 0 < self.character_coverage <= 1:
            raise ValueError(f"character_coverage is {self.character_coverage}: it is a share, above 0 and at most 1.")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Train a tokenizer on the sources, or take an existing SentencePiece model. Exactly one of the two."""

    __pydantic_config__ = STRICT

    train: TokenizerTrainingConfig | None = None
    """Train a new model."""
    path: str | None = None
    """Use this SentencePiece .model file."""

    def __post_init__(self) -> None:
        if (self.train is None) == (self.path is None):
            raise ValueError("tokenizer takes exactly one of `train` (with its options) and `path` (a .model file).")


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """Normalisation of a text before it is hashed and tokenized; the build ledger accounts for it."""

    __pydantic_config__ = STRICT

    unicode_normalization: Literal["nfc"] | None = "nfc"
    """Canonical composition, or null to leave code points as they are."""
    unwrap_lines: bool = False
    """Join hard-wrapped lines, as in Project Gutenberg's texts: each paragraph becomes one line."""
    min_characters: int = 1
    """Shorter documents (after stripping) are dropped, counted as `too_short`; empty ones as `empty`."""
    invalid_utf8: Literal["error", "drop"] = "error"
    """Stop at bytes that are not UTF-8, or drop the document and count it as `invalid_utf8`."""


@dataclass(frozen=True, kw_only=True)
class DataBuildConfig:
    """A dataset build: corpora in, Arrow shards with a manifest out."""

    __pydantic_config__ = STRICT

    name: str
    """Name of the dataset, for people."""
    output: str
    """Directory that becomes the dataset."""
    sources: tuple[SourceConfig, ...]
    """The corpora, in the order in which they are written."""
    tokenizer: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(train=TokenizerTrainingConfig()))
    """The SentencePiece model."""
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """Normalisation and drops."""
    labels: LabelsConfig | None = None
    """What documents are labelled with, for fine-tuning. Null: nothing."""
    validation_fraction: float = 0.01
    """Share of documents, by hash of their normalised content, held out for validation."""
    shard_tokens: int = 100_000_000
    """Tokens after which a new shard file is begun."""
    chat_template: ChatTemplate | None = None
    """How conversations are written as text. Null: `User:`, `Assistant:` and `System:` on lines of their own, where
    the sources hold any."""

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template that conversations are written with; None where the sources hold text."""
        if not self.sources[0].holds_conversations:
            return None
        return self.chat_template or ChatTemplate()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: a dataset needs at least one corpus.")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"sources carry a name twice: {sorted(n for n in set(names) if names.count(n) > 1)}.")
        chats = [source.name for source in self.sources if source.holds_conversations]
        if chats and len(chats) < len(self.sources):
            raise ValueError(
                f"the sources {', '.join(chats)} hold conversations, and the others text: in one dataset it would not "
                "be clear what is to be learned. Build two datasets, which a run can mix."
            )
        if self.labels is not None and chats:
            raise ValueError(
                f"labels are given, and the sources {', '.join(chats)} hold conversations, which have answers to learn "
                "and no labels. Leave one of them out."
            )
        if self.chat_template is not None and not chats:
            raise ValueError(
                "chat_template is given, and no source holds conversations that it could write. Name messages_field, "
                "or prompt_field and answer_field, of the sources, or leave chat_template out."
            )
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}: it is a share, from 0 to under 1.")
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens is {self.shard_tokens}, and must be above 0.")


@dataclass(frozen=True, kw_only=True)
class MixtureEntry:
    """One dataset of a mixture."""

    __pydantic_config__ = STRICT

    path: str
    """Dataset directory, or a shipped sample, `sample:austen` or `sample:dialogues`."""
    weight: float | None = None
    """Share of sequences, relative to the other weights; null (in all entries) means by size."""
    max_epochs: int | None = None
    """Passes over this dataset after which the others fill its place; null means no limit."""

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"weight is {self.weight}, and must be above 0. Drop the dataset instead.")
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(f"max_epochs is {self.max_epochs}, and must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stretch of training with mixture weights of its own."""

    __pydantic_config__ = STRICT

    sequences: int
    """Length of the stage in sequences."""
    weights: tuple[float, ...]
    """One weight for each dataset, in their order; 0 leaves one out."""

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise ValueError(f"sequences is {self.sequences}, and must be above 0.")
        if any(weight < 0 for weight in self.weights) or not sum(self.weights) > 0:
            raise ValueError(f"weights are {list(self.weights)}: none may be negative and one must be above 0.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data: what is read, cut how, in which order."""

    __pydantic_config__ = STRICT

    dataset: str | tuple[MixtureEntry, ...]
    """A dataset directory, a shipped sample (`sample:austen`, `sample:dialogues`), or a list of {path, weight}."""
    seq_len: int = 256
    """Tokens T in one sequence."""
    document_mask: bool = True
    """Keep attention and targets within a document; false lets them cross."""
    packing: Literal["stream", "documents", "examples"] = "stream"
    """`stream` cuts sequences from the stream of documents at stride seq_len: each token is a target once, and nothing
    is padded. `documents` fills each with as many whole neighbours as fit, and pads the rest; only documents that are
    longer are cut. So an answer is learned after its question, and not in another sequence. `examples` takes each
    document by itself and cuts off what is longer, for tasks that learn labels."""
    class_weights: Literal["none", "balanced"] = "none"
    """What a label counts in the loss: 1, or, `balanced`, labels / (classes x labels of its class), so that all classes
    count alike."""
    stages: tuple[StageConfig, ...] = ()
    """Mixtures for the first stretches of training; after the last stage the datasets' own weights hold."""
    shuffle_window_blocks: int | None = None
    """Blocks of shuffle_block_sequences rows that are mixed with each other; null mixes the whole dataset."""
    shuffle_block_sequences: int = 1024
    """Rows in one block, read from neighbouring places on disk."""
    begins_after_step: int = 0
    """Optimizer steps that were made on other data before the first sequence of this; set by `branch` alone, when it
    changes the data."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "shuffle_block_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be above 0.")
        if self.class_weights != "none" and self.packing != "examples":
            raise ValueError(
                f"class_weights is {self.class_weights} and packing {self.packing}: text has no classes. "
                "Leave class_weights out."
            )
        if self.begins_after_step < 0:
            raise ValueError(f"begins_after_step is {self.begins_after_step}: it is a count of steps, 0 for a new run.")
        if self.shuffle_window_blocks is not None and self.shuffle_window_blocks < 1:
            raise ValueError(f"shuffle_window_blocks is {self.shuffle_window_blocks}, and must be above 0, or null.")
        entries = self.entries
        if not entries:
            raise ValueError("dataset is an empty list: name at least one dataset.")
        paths = [entry.path for entry in entries]
        if len(set(paths)) != len(paths):
            raise ValueError("dataset names the same path twice: give it once, with the summed weight.")
        if len({entry.weight is None for entry in entries}) > 1:
            raise ValueError("some datasets have a weight and some have none: give all of them one, or none.")
        for number, stage in enumerate(self.stages):
            if len(stage.weights) != len(entries):
                raise ValueError(
                    f"stages[{number}].weights has {len(stage.weights)} numbers for {len(entries)} datasets: "
                    "one each, in their order."
                )

    @property
    def entries(self) -> tuple[MixtureEntry, ...]:
        """The mixture, also when only one dataset was named."""
        return (MixtureEntry(path=self.dataset),) if isinstance(self.dataset, str) else self.dataset
