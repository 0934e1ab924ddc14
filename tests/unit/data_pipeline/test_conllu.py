from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.config import SourceConfig
from data_pipeline.errors import CorpusError
from data_pipeline.label_config import LabelsConfig
from data_pipeline.raw_document import RawDocument, Word
from data_pipeline.readers import read_documents

TAGS = LabelsConfig(kind="token_class", field="upos")


def line(number: str, form: str, tag: str, misc: str = "_") -> str:
    return "\t".join([number, form, "_", tag, "_", "_", "0", "_", "_", misc]) + "\n"


SENTENCE = (
    "# sent_id = s1\n# text = I don't.\n"
    + line("1", "I", "PRON")
    + line("2-3", "don't", "_", "SpaceAfter=No")
    + line("2", "do", "AUX", "SpaceAfter=No")
    + line("3", "n't", "_", "Gloss=not|SpaceAfter=No")
    + line("3.1", "ghost", "VERB")
    + line("4", ".", "PUNCT")
    + "\n"
)


def read(path: Path, labels: LabelsConfig | None = TAGS) -> list[RawDocument]:
    return list(read_documents(SourceConfig(name="bank", path=str(path)), labels))


def test_sentence_is_its_syntactic_words_with_one_column_of_tags(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(SENTENCE + line("1", "Yes", "INTJ"), encoding="utf-8")
    first, second = read(path)
    assert (first.document_id, first.data, first.label) == ("s1", b"I don't.", ("PRON", "AUX", None, "PUNCT"))
    assert first.words == (Word("I"), Word("do", False), Word("n't", False), Word("."))
    assert (second.document_id, second.data, second.label) == ("a.conllu:10", b"Yes", ("INTJ",))


def test_sentence_is_plain_text_where_no_labels_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(SENTENCE, encoding="utf-8")
    (only,) = read(path, None)
    assert (only.data, only.label, only.words) == (b"I don't.", None, None)


@pytest.mark.parametrize(
    ("labels", "content", "message"),
    [
        (LabelsConfig(kind="token_class", field="pos"), SENTENCE, "labels.field is 'pos', and a word in CoNLL-U has"),
        (LabelsConfig(kind="class"), SENTENCE, "is CoNLL-U, which labels words, and labels.kind is class"),
        (TAGS, "1\tword\tNOUN\n", r"a\.conllu, line 1 has 3 columns, and CoNLL-U 10"),
    ],
)
def test_what_is_not_as_asked_is_refused(labels: LabelsConfig, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read(path, labels)
