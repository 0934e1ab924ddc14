"""A checkpoint of a run as a Hugging Face directory, which nobody can find before it is proven."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.checkpoint import CheckpointInfo, CheckpointReader, verify
from cluster.checkpoint.inspection import elements
from cluster.conversation import chat_template_of, example_chats
from cluster.errors import RunRefusedError
from cluster.inference import dataset_paths
from cluster.resolution import trained_model
from cluster.run_directory import TOKENIZER_NAME, read_tokenizer
from cluster.storage.operations import StoragePath
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.sequences import ValidationSequences
from data_pipeline.tokenizer import Tokenizer
from llm.errors import ExportError, ProofError
from llm.hugging_face.chat import prove_chat_template
from llm.hugging_face.export import MAX_SHARD_BYTES, ExportDtype, Exported, export_model
from llm.hugging_face.proof import Proof, prove_export
from llm.hugging_face.sentencepiece_model import SpecialTokens, read_sentencepiece
from llm.hugging_face.tokenizer import prove_tokenizer

logger = logging.getLogger(__name__)

PROOF_POSITIONS = 1024
"""Logits are compared at about so many: each is one over the whole vocabulary, and a wrong convention shows at all."""
_MOST_ROWS = 16
_FP32_BYTES = 4
_OLDEST_TRANSFORMERS = 5
_TEXTS = (
    "It is a truth universally acknowledged - 'that' 12,345.67 %, e-mail: a_b@c.org\n\n\tIndented;\r\nlast.",
    "na\u00efve fa\u00e7ade \u2014 \u201cquoted\u201d \u20ac5 \u00bd \ufb01 A\u030a \u2581 <s> </s> <0x0A>",
    "\u4e2d\u6587\uff0c\u65e5\u672c\u8a9e \u0939\u093f\u0928\u094d\u0926\u0940 \u0639\u0631\u0628\u064a",
    "\U0001f642\U0001f469\u200d\U0001f467 \u043c\u0438\u0440",
)
"""Compared besides the run's own text: several scripts, marks that have a meaning to tokenizers, ends of lines."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is to be written."""

    dtype: ExportDtype = "float32"
    """Of the file's numbers."""
    max_shard_bytes: int = MAX_SHARD_BYTES
    """Weights beyond this are divided over files."""
    with_tokenizer: bool = True
    """Write the files of the tokenizer too."""
    with_chat_template: bool = True
    """Write the chat template with them, of a run that was trained on conversations."""


@dataclass(frozen=True, kw_only=True)
class ProofRows:
    """What both sides read."""

    tokens: torch.Tensor
    """int64 ids. Shape: (B, T)."""
    texts: tuple[str, ...]
    """For the tokenizers."""
    origin: str
    """Where they come from, for people."""


@dataclass(frozen=True, kw_only=True)
class ProvenExport:
    """What was written and how it was proven."""

    step: int
    """Of the checkpoint."""
    exported: Exported
    proof: Proof
    proven_on: str
    """What the logits were compared on."""
    tokens_compared: int | None
    """Ids that both tokenizers gave alike; null where no tokenizer was written."""
    conversations_compared: int | None
    """Conversations that both gave alike; null where no chat template was written."""


def export_checkpoint(
    info: CheckpointInfo,
    run_directory: StoragePath,
    target: Path,
    options: ExportOptions,
    *,
    advance: Callable[[int], None] = lambda count: None,
    say: Callable[[str], None] = lambda text: None,
) -> ProvenExport:
    """Write a checkpoint as a Hugging Face directory and prove it with transformers, one parameter at a time.

    The proof holds the model twice in fp32, ours and theirs; what comes before holds a parameter.

    Args:
        info: The checkpoint.
        run_directory: Of its run.
        target: The directory, which appears when it is proven; must not exist.
        options: How it is to be written.
        advance: Called with bytes that were read; `bytes_to_read` in all.
        say: Told when the proof begins.

    Raises:
        ExportError: transformers is not installed, or the model, the tokenizer or the target is refused.
        ProofError: The export is not what the run has; nothing is left of it.
        CheckpointError: The checkpoint is damaged or out of reach.
    """
    require_transformers()
    if info.manifest is None or info.problem is not None:
        raise info.error()
    run = info.manifest.run
    tokenizer = read_tokenizer(run_directory / TOKENIZER_NAME)
    _check_tokenizer(tokenizer, run, run_directory)
    model = trained_model(info.manifest)
    if model.head is not None:
        raise ExportError(
            f"{run_directory} was trained for task {run['config']['task']}: its head is not a language model's, and "
            "only those are exported. Export the run that it began with, or use predict."
        )
    weights = _Weights(info, advance)
    rows = proof_rows(run["config"]["data"], tokenizer)
    found: list[tuple[Proof, int | None, int | None]] = []
    pieces = (
        read_sentencepiece(tokenizer.model, str(run_directory / TOKENIZER_NAME)) if options.with_tokenizer else None
    )
    template = chat_template_of(run) if pieces is not None and options.with_chat_template else None
    control_texts = [] if pieces is None else pieces.texts("control", "unknown")

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text).tolist()
        return ids

    def prove(directory: Path) -> None:
        say(f"comparing with transformers, on {rows.origin}")
        _silence_transformers()
        try:
            compared = prove_tokenizer(directory, encode, rows.texts) if options.with_tokenizer else None
            chats = None
            if template is not None:
                chats = prove_chat_template(directory, example_chats(tokenizer, template, rows.texts, control_texts))
            found.append((prove_export(directory, model, weights.read, rows.tokens), compared, chats))
        except ProofError as error:
            told = str(error).replace(str(directory), str(target))
            raise ProofError(f"the export is not proven, and nothing of it was kept: {told}") from error

    exported = export_model(
        target,
        model,
        weights.read,
        tokenizer=pieces or SpecialTokens(bos=tokenizer.bos_id, eos=tokenizer.eos_id, pad=tokenizer.pad_id),
        chat_template=None
        if template is None or pieces is None
        else template.jinja(control_texts=control_texts, answer_lead=" " if pieces.dummy_prefix else ""),
        sequence_length=run["config"]["data"]["seq_len"],
        dtype=options.dtype,
        max_shard_bytes=options.max_shard_bytes,
        prove=prove,
    )
    proof, compared, chats = found[0]
    return ProvenExport(
        step=info.step,
        exported=exported,
        proof=proof,
        proven_on=rows.origin,
        tokens_compared=compared,
        conversations_compared=chats,
    )


def bytes_to_read(info: CheckpointInfo) -> int:
    """Bytes that an export takes from a checkpoint: all files to verify them, the weights to write and to prove."""
    manifest = info.manifest
    if manifest is None:
        return 0
    return manifest.size_bytes + 2 * _FP32_BYTES * sum(elements(manifest, name) for name in manifest.pieces)


def require_transformers() -> None:
    """Refuse to begin what could not be proven.

    Raises:
        ExportError: transformers is absent or too old.
    """
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        version = None
    if version is None or int(version.split(".")[0]) < _OLDEST_TRANSFORMERS:
        found = "is not installed here" if version is None else f"is of version {version} here"
        raise ExportError(
            f"an export is proven with transformers {_OLDEST_TRANSFORMERS} or newer before it appears, and that "
            f"{found}. Install it: pip install 'longhaul[export]'"
        )


def proof_rows(data: Mapping[str, Any], tokenizer: Tokenizer) -> ProofRows:
    """Rows of the first of a run's datasets that is at hand and has text held out; else ids drawn by a fixed seed.

    Args:
        data: The `data` section of the configuration in the checkpoint.
        tokenizer: The run's.
    """
    length = min(data["seq_len"], PROOF_POSITIONS)
    count = max(1, min(_MOST_ROWS, PROOF_POSITIONS // length))
    missing = []
    for path in dataset_paths(data):
        try:
            return _rows_of(path, tokenizer, length, count)
        except (DataError, OSError) as error:
            missing.append(str(error))
    tokens_BT = torch.from_numpy(np.random.default_rng(0).integers(0, tokenizer.vocab_size, (count, length)))
    logger.warning("ids drawn at random are compared, since no text of the run is at hand: %s", " ".join(missing))
    return ProofRows(
        tokens=tokens_BT, texts=_TEXTS, origin=f"{count} x {length} ids drawn at random, its text not being at hand"
    )


def _rows_of(path: str, tokenizer: Tokenizer, length: int, count: int) -> ProofRows:
    """Rows spread over a validation split.

    Raises:
        DataError: The dataset is not there, is another's, or has held out no row.
    """
    dataset = Dataset.open(path)
    if dataset.tokenizer_hash != tokenizer.hash:
        raise DataError(f"dataset {path} was built with another tokenizer by now.")
    sequences = ValidationSequences(dataset, length, document_mask=False)
    whole = max(sequences.stream.tokens - 1, 0) // length
    if whole == 0:
        raise DataError(f"dataset {path} has held out no {length} tokens for validation.")
    chosen = np.unique(np.linspace(0, whole - 1, count).astype(np.int64))
    tokens_BT = sequences.read(chosen).tokens
    texts = tuple(tokenizer.decode(row_T) for row_T in tokens_BT)
    return ProofRows(
        tokens=torch.from_numpy(tokens_BT),
        texts=(*texts, *_TEXTS),
        origin=f"{len(chosen)} x {length} tokens of the validation split of {path}",
    )


@dataclass
class _Weights:
    """The masters of a checkpoint, all of whose files are verified before the first is read."""

    info: CheckpointInfo
    advance: Callable[[int], None]
    reader: CheckpointReader | None = field(default=None, init=False)

    def read(self, name: str) -> torch.Tensor:
        assert self.info.manifest is not None
        if self.reader is None:
            verify(self.info, progress=lambda record: self.advance(record.size_bytes))
            self.reader = CheckpointReader(self.info.directory, self.info.manifest)
        parameter = self.reader.whole(name)
        self.advance(parameter.nbytes)
        return parameter


def _check_tokenizer(tokenizer: Tokenizer, run: Mapping[str, Any], run_directory: StoragePath) -> None:
    wanted = run["data_plan"]["tokenizer"]
    if tokenizer.hash != wanted:
        raise RunRefusedError(
            f"{run_directory / TOKENIZER_NAME} has the hash {tokenizer.hash}, and the checkpoint was trained with a "
            f"tokenizer of hash {wanted}: its ids would mean other text. Restore the file from the run's dataset."
        )


def _silence_transformers() -> None:
    """Its bar over the weights would be drawn into ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


__all__ = [
    "ExportOptions",
    "ProofRows",
    "ProvenExport",
    "bytes_to_read",
    "export_checkpoint",
    "proof_rows",
    "require_transformers",
]
