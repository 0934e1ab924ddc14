"""Documents out of what one line, row or sentence holds: text, a conversation, or text with its labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.config import SourceConfig
from data_pipeline.conllu import sentences
from data_pipeline.conversations import read_turns
from data_pipeline.errors import CorpusError
from data_pipeline.json_lines import as_read, field, text_field
from data_pipeline.label_config import LabelsConfig
from data_pipeline.labels import Label, LabelReader
from data_pipeline.raw_document import RawDocument, Word, joined


def document_of(
    source: SourceConfig, value: dict[str, Any], place: str, where: str, labels: LabelsConfig | None
) -> RawDocument:
    """Makes a document of an object.

    Args:
        source: Whose file it is of.
        value: The object that a line or row is.
        place: Its name, where the source has no id_field.
        where: File and line, for messages.
        labels: What documents are labelled with.

    Raises:
        CorpusError: Says what is missing or of another kind.
    """
    name = place if source.id_field is None else str(field(source, value, "id_field", where))
    if source.holds_conversations:
        turns = read_turns(source, value, where)
        data = b"".join(turn.data for turn in turns)
        return RawDocument(_printable(name), source.name, data, where, turns=turns)
    if labels is None:
        return RawDocument(_printable(name), source.name, text_field(source, value, "text_field", where), where)
    if labels.field not in value:
        raise CorpusError(
            f"Source {source.name!r}: {where} has no key {labels.field!r}; it has "
            f"{', '.join(map(repr, value)) or 'none'}. Set labels.field to one of them."
        )
    if labels.kind == "token_class":
        words = _words(source, field(source, value, "text_field", where), where)
        return _tagged(source, name, where, words, LabelReader(labels, source.name).read(value[labels.field], where))
    data = text_field(source, value, "text_field", where)
    label = LabelReader(labels, source.name).read(value[labels.field], where)
    return RawDocument(_printable(name), source.name, data, where, label=label)


def documents_of_treebank(
    source: SourceConfig, stream: BinaryIO, file: Path, name: str, labels: LabelsConfig | None
) -> Iterator[RawDocument]:
    """Makes a document of each sentence of a CoNLL-U file.

    Args:
        source: Whose file it is.
        stream: Its bytes.
        file: Its path, for messages.
        name: Its name, for sentences that have none.
        labels: What words are labelled with; None takes the text alone.

    Raises:
        CorpusError: Says what is not as it must be.
    """
    if labels is not None and labels.kind != "token_class":
        raise CorpusError(
            f"Source {source.name!r}: {file} is CoNLL-U, which labels words, and labels.kind is {labels.kind}. Set it "
            "to token_class, or leave labels out for the text alone."
        )
    for sentence in sentences(stream, "upos" if labels is None else labels.field, source.name, file):
        where = f"{file}, line {sentence.line}"
        place = sentence.name or f"{name}:{sentence.line}"
        words = tuple(Word(*each) for each in zip(sentence.words, sentence.spaces, strict=True))
        if labels is None:
            yield RawDocument(_printable(place), source.name, as_read(joined(words)), where)
        else:
            yield _tagged(source, place, where, words, LabelReader(labels, source.name).read(sentence.tags, where))


def _words(source: SourceConfig, value: object, where: str) -> tuple[Word, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise CorpusError(
            f"Source {source.name!r}: {where} has {str(value)[:80]!r} under {source.text_field!r}, and labels.kind is "
            "token_class: it must be a list of words, none of them empty. Mend or remove the line."
        )
    return tuple(Word(item) for item in value)


def _tagged(source: SourceConfig, name: str, where: str, words: tuple[Word, ...], label: Label) -> RawDocument:
    assert isinstance(label, tuple)
    if len(label) != len(words):
        raise CorpusError(
            f"Source {source.name!r}: {where} has {len(words)} words and {len(label)} labels: each word has one. "
            "Mend or remove the line."
        )
    return RawDocument(_printable(name), source.name, as_read(joined(words)), where, label=label, words=words)


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()
