"""A SentencePiece tokenizer as the files that transformers loads, with the same ids for every text.

BPE. SentencePiece joins, again and again, the two neighbours whose union has the best score, leftmost first among
equals; Hugging Face's BPE joins the two whose *pair* comes first in a list of merges. A piece may be the union of
several pairs, which have one score there and several places here, but only one of them can ever arise: what is joined
inside a stretch of text is joined in the same order when the stretch stands alone (a joining across its border would
have ended it), so before a stretch becomes the piece it is the same two symbols everywhere. Different pieces with one
score are refused.

Unigram. Both take the segmentation with the greatest sum of scores. SentencePiece adds in single precision, Hugging
Face in double: where two segmentations come nearer to each other than single precision tells apart, ids may differ. In
practice that is runs of spaces, whose pieces add up to the same in any order. `prove_tokenizer` says on real text
whether they do.

In tokenizer.json pieces have real spaces, not U+2581, so that nothing needs to be replaced in a text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from llm.errors import ExportError, ProofError
from llm.hugging_face.sentencepiece_model import SPACE_MARK, SentencePieceModel

_OWN_TOKENIZER = ("qwen2",)
"""Types for which transformers 5 takes the family's tokenizer whatever tokenizer_config.json says."""
_SHOWN = 40


def tokenizer_files(
    model: SentencePieceModel, model_type: str, sequence_length: int, chat_template: str | None = None
) -> dict[str, bytes]:
    """Files that make transformers' AutoTokenizer give the ids of a SentencePiece model, and the model itself.

    A text's own `<s>` is text, as it was in training, and not the control piece. With special tokens, the default,
    the beginning-of-text token comes first. With a chat template that differs: transformers reads a conversation as one
    text in which control pieces stand by their names, so that a text's own are taken for them too.

    Args:
        model: The tokenizer.
        model_type: Of the config.json beside which the files will lie.
        sequence_length: Tokens of the longest text, for programs that cut or warn.
        chat_template: Of a model that answers in conversations, in Jinja.

    Raises:
        ExportError: transformers would not use the files, or no file gives the same ids.
    """
    if model_type in _OWN_TOKENIZER:
        raise ExportError(
            f"model_type is {model_type}, for which transformers loads a tokenizer of its own and ignores this one: "
            "ids would be others. Export with the special tokens alone, and encode with tokenizer.model."
        )
    ids = {"bos": model.tokens.bos, "eos": model.tokens.eos, "pad": model.tokens.pad, "unk": model.unk_id}
    names = {f"{name}_token": model.pieces[id].text for name, id in ids.items() if id is not None}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sequence_length,
        "split_special_tokens": chat_template is None,
        "clean_up_tokenization_spaces": False,
        **names,
        **({} if chat_template is None else {"chat_template": chat_template}),
    }
    return {
        "tokenizer.model": model.data,
        "tokenizer.json": json.dumps(_tokenizer_json(model), ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n",
    }


def prove_tokenizer(directory: Path, encode: Callable[[str], Sequence[int]], texts: Iterable[str]) -> int:
    """Compare the ids that transformers gives in a directory with those of the tokenizer that was exported.

    Args:
        directory: The export, config.json and all.
        encode: Gives the ids of a text, without special tokens.
        texts: To compare on.

    Returns:
        Tokens compared.

    Raises:
        ProofError: Some differ, or transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ProofError(
            f"the tokenizer in {directory} was not compared with transformers, which is not installed here. Install it "
            "(python -m pip install 'longhaul[export]')."
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(directory, model_max_length=sys.maxsize)  # else it warns of long texts
    compared = 0
    for number, text in enumerate(texts):
        ours = [int(token) for token in encode(text)]
        theirs = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if ours != theirs:
            first = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
            before = tokenizer.decode(theirs[:first])
            raise ProofError(
                f"transformers gives other ids from {directory} than the tokenizer does: in text {number}, token "
                f"{first}, after {before[-_SHOWN:]!r}, {theirs[first : first + 4]} instead of "
                f"{ours[first : first + 4]}. A model would read other tokens there than in training. Export "
                "without this tokenizer, and encode with its tokenizer.model."
            )
        compared += len(ours)
    return compared


def _tokenizer_json(model: SentencePieceModel) -> dict[str, Any]:
    """https://huggingface.co/docs/tokenizers, as the library itself writes it."""
    special = {"unknown": True, "control": True, "user_defined": False}
    added = [
        {
            "id": id,
            "content": piece.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special[piece.kind],
        }
        for id, piece in enumerate(model.pieces)
        if piece.kind in special
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(model),
        "pre_tokenizer": None if model.algorithm == "bpe" else _cut_at_names(model),
        "post_processor": _post_processor(model),
        "decoder": _decoder(model),
        "model": _bpe(model) if model.algorithm == "bpe" else _unigram(model),
    }


def _bpe(model: SentencePieceModel) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.unk_id].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.text: id for id, piece in enumerate(model.pieces)},
        "merges": bpe_merges(model),
    }


def bpe_merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Every pair of pieces whose union is a piece, best score of the union first.

    Raises:
        ExportError: Two pieces have one score: which goes first then depends on the text.
    """
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind == "normal"}
    ordered = sorted((text for text in scores if len(text) > 1), key=lambda text: -scores[text])
    for one, other in pairwise(ordered):
        if scores[one] == scores[other]:
            raise ExportError(
                f"the pieces {one!r} and {other!r} have one score, {scores[one]}: which of them SentencePiece joins "
                "first depends on where they stand, and Hugging Face's BPE has one order for all texts. Train the "
                "tokenizer with `data tokenizer`, which gives each its own, or export without one."
            )
    cuts = ((text[:at], text[at:]) for text in ordered for at in range(1, len(text)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def _unigram(model: SentencePieceModel) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": model.unk_id,
        "vocab": [[piece.text, piece.score] for piece in model.pieces],
        "byte_fallback": model.byte_fallback,
    }


def _cut_at_names(model: SentencePieceModel) -> dict[str, Any] | None:
    """Cut texts inside what looks like the name of a byte or control piece, where no piece crosses the cut.

    Hugging Face's Unigram finds every name of the vocabulary in a text, `<0x41>` among them; SentencePiece does not.
    """
    normal = model.texts("normal")
    neighbours = {text[at : at + 2] for text in normal for at in range(len(text) - 1)}
    suffixes: dict[str, list[str]] = {}
    for name in model.texts("byte", "control", "unknown"):
        cut = next((at for at in range(1, len(name)) if name[at - 1 : at + 1] not in neighbours), None)
        if cut is None:
            raise ExportError(
                f"the tokenizer's pieces spell the name {name!r} of a piece that is no text at every joint: Hugging "
                "Face's Unigram would take it for that piece. Train a BPE tokenizer, or export without one."
            )
        suffixes.setdefault(name[:cut], []).append(name[cut:])
    patterns = [f"{re.escape(head)}(?={'|'.join(map(re.escape, tails))})" for head, tails in suffixes.items()]
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join(patterns)},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }


def _normalizer(model: SentencePieceModel) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": " "}] if model.dummy_prefix else []
    if not model.spells_the_mark:
        steps.append({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _decoder(model: SentencePieceModel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _post_processor(model: SentencePieceModel) -> dict[str, Any] | None:
    if model.tokens.bos is None:
        return None
    name = model.pieces[model.tokens.bos].text

    def begun(sequence: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": name, "type_id": type_id}},
            {"Sequence": {"id": sequence, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": begun("A", 0),
        "pair": [*begun("A", 0), *begun("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [model.tokens.bos], "tokens": [name]}},
    }
