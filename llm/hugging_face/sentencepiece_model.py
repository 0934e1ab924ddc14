"""A SentencePiece model taken apart, and refused where Hugging Face's tokenizers would give other ids."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from llm.errors import ExportError

SPACE_MARK = "\u2581"
"""SentencePiece spells a space with it; here, and in tokenizer.json, pieces have real spaces."""
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_REMEDY = "Train the tokenizer with `data tokenizer`, or export without one."


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids that a program needs to know to generate text."""

    bos: int | None
    """Begins a text."""
    eos: int | None
    """Ends a text."""
    pad: int | None
    """Fills rows; null where the tokenizer has none."""


@dataclass(frozen=True, kw_only=True)
class VocabularyPiece:
    """One piece, at its id."""

    text: str
    """With real spaces."""
    score: float
    kind: Literal["normal", "unknown", "control", "user_defined", "byte"]


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What decides the ids that a model gives."""

    data: bytes
    """Content of the .model file."""
    algorithm: Literal["bpe", "unigram"]
    pieces: tuple[VocabularyPiece, ...]
    byte_fallback: bool
    """Characters that are no piece become the pieces of their bytes."""
    dummy_prefix: bool
    """A space is put in front of every text."""
    unk_id: int
    tokens: SpecialTokens

    def texts(self, *kinds: str) -> list[str]:
        """Texts of all pieces of some kinds, in the order of their ids."""
        return [piece.text for piece in self.pieces if piece.kind in kinds]

    @property
    def spells_the_mark(self) -> bool:
        """Whether a text's own U+2581 is spelled by its bytes, as `data build` does, and is not read as a space.

        It is where lines are encoded on their own: where a newline is a piece, part of no other, and nothing is added.
        """
        with_newline = [piece.text for piece in self.pieces if "\n" in piece.text]
        return self.byte_fallback and not self.dummy_prefix and with_newline == ["\n"]


def read_sentencepiece(data: bytes, where: str) -> SentencePieceModel:
    """Take the content of a .model file apart.

    Args:
        data: The content.
        where: Its path, for messages.

    Raises:
        ExportError: It is no model, or one whose ids Hugging Face's tokenizers cannot be made to give.
    """
    try:
        return _read(_parsed(data), data)
    except ExportError as error:
        raise ExportError(f"{where}: {error}") from error


def _parsed(data: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ExportError(
            f"{len(data)} bytes that are not a SentencePiece model. Give the tokenizer.model of the dataset."
        ) from error
    if not proto.pieces:
        raise ExportError("a SentencePiece model without pieces. Give the tokenizer.model of the dataset.")
    return proto


def _read(proto: Any, data: bytes) -> SentencePieceModel:
    algorithm = {1: "unigram", 2: "bpe"}.get(proto.trainer_spec.model_type)
    _require(algorithm is not None, "is neither bpe nor unigram")
    _require(not proto.normalizer_spec.precompiled_charsmap, "rewrites characters before it encodes (a normalization)")
    _require(not proto.denormalizer_spec.precompiled_charsmap, "rewrites characters when it decodes")
    _require(not proto.normalizer_spec.remove_extra_whitespaces, "removes spaces (remove_extra_whitespaces)")
    _require(proto.normalizer_spec.escape_whitespaces, "treats spaces as no piece's (escape_whitespaces is off)")
    _require(not proto.trainer_spec.treat_whitespace_as_suffix, "puts spaces behind words (treat_whitespace_as_suffix)")
    kinds = {1: "normal", 2: "unknown", 3: "control", 4: "user_defined", 6: "byte"}
    _require(all(piece.type in kinds for piece in proto.pieces), "has pieces marked as unused")
    pieces = tuple(
        VocabularyPiece(text=piece.piece.replace(SPACE_MARK, " "), score=piece.score, kind=kinds[piece.type])  # type: ignore[arg-type]
        for piece in proto.pieces
    )
    ids = {kind: [number for number, piece in enumerate(pieces) if piece.kind == kind] for kind in kinds.values()}
    _require(len(ids["unknown"]) == 1, "has not exactly one piece for the unknown")
    spec = proto.trainer_spec
    named = {name: _control_id(pieces, getattr(spec, f"{name}_piece")) for name in ("bos", "eos", "pad")}
    model = SentencePieceModel(
        data=data,
        algorithm=algorithm,  # type: ignore[arg-type]
        pieces=pieces,
        byte_fallback=spec.byte_fallback,
        dummy_prefix=proto.normalizer_spec.add_dummy_prefix,
        unk_id=ids["unknown"][0],
        tokens=SpecialTokens(**named),
    )
    _check_pieces(model)
    return model


def _control_id(pieces: tuple[VocabularyPiece, ...], text: str) -> int | None:
    return next((id for id, piece in enumerate(pieces) if piece.kind == "control" and piece.text == text), None)


def _check_pieces(model: SentencePieceModel) -> None:
    """Refuse vocabularies by which the two libraries come to differ."""
    twice = [text for text, count in Counter(piece.text for piece in model.pieces).items() if count > 1]
    _require(not twice, f"has the piece {twice[0]!r} twice, spaces and U+2581 being the same" if twice else "")
    _require(not model.byte_fallback or model.texts("byte") == list(_BYTES), "has not the 256 byte pieces in order")
    whole = set(model.texts("normal", "user_defined"))
    split = [text for text in model.texts("normal") if not set(text) <= whole]
    # An unknown character could be joined to others there, and here never.
    _require(not split, f"has the piece {split[0]!r} of characters that are no pieces" if split else "")
    defined = model.texts("user_defined")
    _require(not (defined and model.dummy_prefix), "has user-defined pieces and puts a space in front of texts")
    for text in defined:
        alone = len(text) == 1 and not any(text in other for other in whole - {text})
        _require(model.algorithm == "bpe" or alone, f"is unigram with the user-defined piece {text!r}, which overlaps")
        overlap = [other for other in model.texts("control") if _overlap(text, other)]
        _require(not overlap, f"has the user-defined piece {text!r}, which overlaps the control piece {overlap}")


def _overlap(one: str, other: str) -> bool:
    """Whether both can lie in a text over each other."""
    ends = range(1, min(len(one), len(other)) + 1)
    return one in other or other in one or any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in ends)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ExportError(
            f"this SentencePiece model {problem}, for which Hugging Face's tokenizers have no equal: ids would differ "
            f"from those that the model was trained on. {_REMEDY}"
        )
