"""SentencePiece tokenizers: training, and text to token ids and back."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece
import xxhash

from data_pipeline.config import TokenizerTrainingConfig
from data_pipeline.errors import TokenizerError
from data_pipeline.publish import write_atomically

UNK_ID, BOS_ID, EOS_ID, PAD_ID = 0, 1, 2, 3
"""Ids of the control pieces in every model trained here."""

SPACE_MARK = "\u2581"
"""SentencePiece spells a space with this character, so text that contains it needs its bytes spelled out."""

_TRAINING_LINE_CHARACTERS = 4096
_PARAGRAPH = re.compile(r"[^\n]*\n+|[^\n]+")
_TOO_HIGH = re.compile(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)")
_TOO_LOW = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


class TrainingSample:
    """The texts that a tokenizer is trained on: all, or those of the smallest hashes up to a number of bytes.

    Which ones is decided by content alone, not by the order in which they come.

    Args:
        max_bytes: Texts are kept until they hold this much.
        seed: Key of the hash.
    """

    def __init__(self, max_bytes: int, seed: int) -> None:
        self._max_bytes = max_bytes
        self._seed = seed
        self._bytes = 0
        self._threshold = 1 << 64
        self._kept: list[tuple[int, bytes]] = []

    def add(self, text: str) -> None:
        """Offers a text."""
        data = text.encode()
        key = xxhash.xxh3_64_intdigest(data, seed=self._seed & (1 << 64) - 1)
        if key >= self._threshold:
            return
        self._kept.append((key, data))
        self._bytes += len(data)
        # Pruning at twice the limit keeps it rare; what is pruned could not have been in the final choice.
        if self._bytes > 2 * self._max_bytes:
            self._prune()

    def texts(self) -> Iterator[str]:
        """Yields the chosen texts in the order of their hashes."""
        self._prune()
        for _, data in self._kept:
            yield data.decode()

    def _prune(self) -> None:
        self._kept.sort()
        total = 0
        for number, (key, data) in enumerate(self._kept):
            total += len(data)
            if total >= self._max_bytes:
                # Equal hashes are equal texts: one of them more would not be another choice.
                del self._kept[number + 1 :]
                self._threshold, self._bytes = key, total
                return


def train_tokenizer(
    texts: Iterable[str], config: TokenizerTrainingConfig, output_path: str | os.PathLike[str]
) -> Tokenizer:
    """Trains a SentencePiece model that spells every text exactly, and writes it.

    Args:
        texts: Documents, sampled already where there are too many.
        config: Algorithm and size.
        output_path: Where the .model file goes.

    Returns:
        The tokenizer.

    Raises:
        TokenizerError: The vocabulary does not fit the text; names the size that would.
    """
    data = _train(texts, config)
    write_atomically(output_path, data)
    return Tokenizer.from_bytes(data, str(output_path))


def _train(texts: Iterable[str], config: TokenizerTrainingConfig) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_lines(texts),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            byte_fallback=True,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=PAD_ID,
            user_defined_symbols=["\n"],
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=8 * _TRAINING_LINE_CHARACTERS,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(_training_problem(str(error), config)) from error
    return model.getvalue()


def training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Cuts texts into lines, and lines that the trainer would drop for their length into pieces."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _TRAINING_LINE_CHARACTERS):
                yield line[start : start + _TRAINING_LINE_CHARACTERS]


def _training_problem(message: str, config: TokenizerTrainingConfig) -> str:
    if found := _TOO_HIGH.search(message):
        return (
            f"tokenizer.train.vocab_size is {config.vocab_size}, more than this text has pieces for: the largest that "
            f"works is {found[1]}. Set tokenizer.train.vocab_size={found[1]} or less, or add text."
        )
    if found := _TOO_LOW.search(message):
        return (
            f"tokenizer.train.vocab_size is {config.vocab_size}, less than the {found[1]} pieces that bytes, control "
            f"pieces and the text's characters take. Set tokenizer.train.vocab_size={int(found[1]) + 1} or more, or "
            f"lower tokenizer.train.character_coverage (now {config.character_coverage:g})."
        )
    if "sentences_.empty()" in message:
        return "There is no text to train a tokenizer on: every document is empty. Check the sources' paths and fields."
    return f"SentencePiece could not train a tokenizer of {config.vocab_size} pieces: {message}"


class Tokenizer:
    """A SentencePiece model.

    Models trained here give back every text exactly: `decode(encode(text)) == text`. A foreign model does
    what it was made for (many add a space in front, fold characters or drop spaces).
    """

    def __init__(self, model: bytes, where: str) -> None:
        self.model = model
        """Content of the .model file."""
        self.hash = xxhash.xxh3_128_hexdigest(model)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise TokenizerError(
                f"{where} ({len(model)} bytes) is not a SentencePiece model. Give a .model file, as `data tokenizer` "
                "writes it."
            ) from error
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.pad_id: int | None = self._processor.pad_id() if self._processor.pad_id() >= 0 else None
        for name, value in (("BOS", self.bos_id), ("EOS", self.eos_id)):
            if value < 0:
                raise TokenizerError(
                    f"The SentencePiece model {where} has no {name} piece, by which documents are told apart. Train it "
                    f"with {name.lower()}_id set, or train one with `data tokenizer`."
                )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Loads a .model file.

        Raises:
            TokenizerError: It is missing, or not a usable model.
        """
        try:
            return cls(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise TokenizerError(
                f"The tokenizer {path} cannot be read ({error.strerror}). Check tokenizer.path, or train one with "
                "`data tokenizer CONFIG`."
            ) from error

    @classmethod
    def from_bytes(cls, model: bytes, where: str = "given as bytes") -> Tokenizer:
        """Loads the content of a .model file; `where` is named in messages."""
        return cls(model, where)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Returns the token ids of a text, without BOS and EOS. Shape: (tokens,)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[npt.NDArray[np.int32]]:
        """Returns the token ids of each text.

        Texts go through SentencePiece by line where the model lets no piece cross one: its work grows faster
        than the length of what it is given. For BPE the ids are those of the whole text; for unigram the
        sums of scores are rounded over a line, not over the text, which may settle a tie otherwise.

        Args:
            texts: The texts.
            threads: Threads of SentencePiece; they do not change the result.
        """
        pieces: list[str] = []
        ends: list[int] = []
        for text in texts:
            pieces += self._cut(text)
            ends.append(len(pieces))
        encoded = self._encode_pieces(pieces, threads)
        starts = [0, *ends[:-1]]
        return [_joined(encoded[start:end]) for start, end in zip(starts, ends, strict=True)]

    @cached_property
    def adds_space(self) -> bool:
        """Whether the model itself puts a space before what it is given."""
        pieces: list[str] = self._processor.EncodeAsPieces("a")
        return pieces[0].startswith(SPACE_MARK)

    def piece(self, token: int) -> str:
        """Returns the name of a piece, as the vocabulary spells it."""
        name: str = self._processor.IdToPiece(token)
        return name

    def decode(self, ids: npt.ArrayLike) -> str:
        """Returns the text of token ids; control pieces give nothing."""
        text: str = self._processor.Decode(np.asarray(ids, dtype=np.int64).tolist())
        return text

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yields text as ids come in, never half a character; the parts joined are `decode` of all ids.

        Args:
            ids: Token ids, one by one.
        """
        context: list[int] = []
        pending: list[int] = []
        for token in ids:
            pending.append(int(token))
            text = self._continuation(context, pending)
            if text and not text.endswith("\ufffd"):
                yield text
                context, pending = pending, []
        if pending and (text := self._continuation(context, pending)):
            yield text

    def _continuation(self, context: list[int], pending: list[int]) -> str:
        before: str = self._processor.Decode(context)
        whole: str = self._processor.Decode(context + pending)
        return whole[len(before) :]

    def _encode_pieces(self, pieces: list[str], threads: int) -> list[npt.NDArray[np.int32]]:
        if not pieces:
            return []
        encoded: list[npt.NDArray[np.int32]] = self._processor.EncodeAsNumpy(pieces, num_threads=threads)
        if self._cuts_at_newline and self._space_mark_ids is not None:
            for number, piece in enumerate(pieces):
                if piece == SPACE_MARK:
                    encoded[number] = self._space_mark_ids
        return encoded

    def _cut(self, text: str) -> list[str]:
        if not self._cuts_at_newline:
            return [text]
        if SPACE_MARK not in text:
            return _PARAGRAPH.findall(text)
        parts = (part for part in re.split(f"({SPACE_MARK})", text) if part)
        return [piece for part in parts for piece in _PARAGRAPH.findall(part)]

    @cached_property
    def _cuts_at_newline(self) -> bool:
        """Whether a text's ids are those of its lines, joined.

        They are where a newline is a piece by itself that is part of no other, and nothing is added or
        removed at the ends of a text.
        """
        newline = self._processor.PieceToId("\n")
        if newline == self._processor.unk_id():
            return False
        others = self._processor.IdToPiece(list(range(self.vocab_size)))
        if sum("\n" in piece for piece in others) != 1:
            return False
        line: list[int] = self._processor.EncodeAsIds(" a  b ")
        together: list[int] = self._processor.EncodeAsIds(" a  b \n\n a  b ")
        return together == [*line, newline, newline, *line] and self._processor.Decode(line) == " a  b "

    @cached_property
    def _space_mark_ids(self) -> npt.NDArray[np.int32] | None:
        """The byte pieces of SPACE_MARK, or None where the model has none."""
        ids = [self._processor.PieceToId(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        return np.array(ids, dtype=np.int32) if all(self._processor.IsByte(token) for token in ids) else None


def _joined(parts: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
