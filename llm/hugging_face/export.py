"""A model written as a Hugging Face directory, which transformers and what builds on it load as they are."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llm.accounting import parameter_shapes, vocabulary_size
from llm.config import ModelConfig
from llm.errors import ExportError
from llm.hugging_face.configuration import CONFIG_FILE, left_out, write_document
from llm.hugging_face.families import Family
from llm.hugging_face.publish import published_directory, write_durably
from llm.hugging_face.safetensors_file import write_safetensors
from llm.hugging_face.sentencepiece_model import SentencePieceModel, SpecialTokens
from llm.hugging_face.tensors import Piece, pieces
from llm.hugging_face.tokenizer import tokenizer_files
from llm.hugging_face.weights import INDEX_FILE, WHOLE_FILE

logger = logging.getLogger(__name__)

ExportDtype = Literal["float32", "bfloat16"]
MAX_SHARD_BYTES = 5 * 10**9
"""As in transformers: a size that other tools and the hub expect."""
_DTYPES: dict[ExportDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_RESERVED = (CONFIG_FILE, "generation_config.json", INDEX_FILE)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    directory: Path
    model_type: str
    weight_files: tuple[str, ...]
    weight_bytes: int
    left_out: Mapping[str, float]
    """Dropout of the training for which the family has no word, by field: what the model computes is the same."""


def export_model(
    target: Path,
    config: ModelConfig,
    read: Callable[[str], Tensor],
    *,
    tokenizer: SentencePieceModel | SpecialTokens,
    sequence_length: int,
    dtype: ExportDtype = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    other_files: Mapping[str, bytes] | None = None,
    chat_template: str | None = None,
    prove: Callable[[Path], None] = lambda directory: None,
) -> Exported:
    """Write a model as a Hugging Face directory: configuration, weights, and files of the tokenizer.

    Each parameter is asked for once, in the order of `parameter_shapes`; beside it, the file's copy of it is held.

    Args:
        target: The directory; must not exist, and appears when it is whole.
        config: Of the model, with vocab_size known.
        read: Gives a parameter by its name: any floating dtype and device.
        tokenizer: What the model was trained with, whose files are written too; or the special tokens alone, where it
            has no SentencePiece model or its files come among the others.
        sequence_length: What max_position_embeddings says where the model sets no limit: the length of the training.
        dtype: Of the file's numbers.
        max_shard_bytes: Weights beyond this are divided over files; a larger tensor has a file of its own.
        other_files: More files, content by name.
        chat_template: In Jinja, written with the tokenizer's files; None for a model that knows no conversations.
        prove: Called with the directory, whole and under a hidden name, before it takes the target's; where it raises,
            nothing is left of the export.

    Raises:
        ModelConfigError: vocab_size is still null.
        ExportError: The target exists, no family expresses the model or no tokenizer of Hugging Face the tokenizer, or
            `read` gives something else than the model has.
    """
    vocabulary_size(config)
    if config.max_position_embeddings is None:
        config = dataclasses.replace(config, max_position_embeddings=sequence_length)
    assert config.max_position_embeddings is not None
    family, document = write_document(config)
    tokens, files = tokenizer if isinstance(tokenizer, SpecialTokens) else tokenizer.tokens, dict(other_files or {})
    if isinstance(tokenizer, SentencePieceModel):
        _check_vocabulary(config, tokenizer)
        length = config.max_position_embeddings
        files = tokenizer_files(tokenizer, family.model_type, length, chat_template) | files
    _check_arguments(config, tokens, max_shard_bytes, files)
    torch_dtype = _DTYPES[dtype]
    shards = _divided(pieces(family.names, config), max_shard_bytes // torch_dtype.itemsize)
    parts = _cut(family, config, read, torch_dtype)
    with published_directory(target) as working:
        for name, members in shards.items():
            write_safetensors(
                working / name,
                {piece.theirs: piece.shape for piece in members},
                torch_dtype,
                (next(parts) for _ in members),
            )
        documents = _documents(document, tokens, dtype) | _index(shards, torch_dtype)
        for name, content in documents.items():
            write_durably(working / name, json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")
        for name, data in files.items():
            write_durably(working / name, data)
        prove(working)
    logger.info("exported a %s model to %s", family.model_type, target)
    size = sum(piece.size for members in shards.values() for piece in members) * torch_dtype.itemsize
    return Exported(
        directory=target,
        model_type=family.model_type,
        weight_files=tuple(shards),
        weight_bytes=size,
        left_out=left_out(config, document),
    )


def _check_vocabulary(config: ModelConfig, tokenizer: SentencePieceModel) -> None:
    if len(tokenizer.pieces) > vocabulary_size(config):
        raise ExportError(
            f"the tokenizer has {len(tokenizer.pieces)} pieces and the model {vocabulary_size(config)} tokens: some "
            "would be outside of it. Give the tokenizer that the model was trained with."
        )


def _check_arguments(
    config: ModelConfig, tokens: SpecialTokens, max_shard_bytes: int, other_files: Mapping[str, bytes]
) -> None:
    if max_shard_bytes < 1:
        raise ExportError(f"max_shard_bytes is {max_shard_bytes}: a file holds at least a byte. Use some 10^9.")
    for name, token in dataclasses.asdict(tokens).items():
        if token is not None and not 0 <= token < vocabulary_size(config):
            raise ExportError(
                f"the {name} token is {token}, and the model has the tokens 0 to {vocabulary_size(config) - 1}. "
                "Give the tokenizer that the model was trained with."
            )
    for name in other_files:
        if name in _RESERVED or name.endswith(".safetensors") or name != Path(name).name or not name:
            raise ExportError(
                f"a file {name!r} was to be written into the export, and that name is not free or no file's name. "
                "Give it another."
            )


def _divided(members: list[Piece], max_numbers: int) -> dict[str, list[Piece]]:
    """Consecutive pieces by the file that holds them."""
    groups: list[list[Piece]] = [[]]
    held = 0
    for piece in members:
        if groups[-1] and held + piece.size > max_numbers:
            groups.append([])
            held = 0
        groups[-1].append(piece)
        held += piece.size
    if len(groups) == 1:
        return {WHOLE_FILE: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)}


def _cut(
    family: Family, config: ModelConfig, read: Callable[[str], Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the files, in order."""
    shapes = parameter_shapes(config)
    name, parameter = "", torch.empty(0)
    for piece in pieces(family.names, config):
        if piece.parameter != name:
            name = piece.parameter
            parameter = read(name).detach().cpu()
            if tuple(parameter.shape) != shapes[name] or not parameter.is_floating_point():
                raise ExportError(
                    f"parameter {name} came as {parameter.dtype} of shape {tuple(parameter.shape)}, and the model's is "
                    f"of numbers of shape {shapes[name]}. Export with the configuration that it was trained with."
                )
        yield piece.theirs, piece.to_theirs(parameter, dtype)


def _documents(document: Mapping[str, Any], tokens: SpecialTokens, dtype: ExportDtype) -> dict[str, Any]:
    """config.json and generation_config.json; both carry the special tokens."""
    ids = {"bos_token_id": tokens.bos, "eos_token_id": tokens.eos, "pad_token_id": tokens.pad}
    # transformers 4 reads torch_dtype, 5 reads dtype.
    return {
        CONFIG_FILE: {**document, **ids, "dtype": dtype, "torch_dtype": dtype, "use_cache": True},
        "generation_config.json": {name: token for name, token in ids.items() if token is not None},
    }


def _index(shards: Mapping[str, list[Piece]], dtype: torch.dtype) -> dict[str, Any]:
    if len(shards) == 1:
        return {}
    weight_map = {piece.theirs: name for name, members in shards.items() for piece in members}
    size = sum(math.prod(piece.shape) for members in shards.values() for piece in members) * dtype.itemsize
    return {INDEX_FILE: {"metadata": {"total_size": size}, "weight_map": weight_map}}
