from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_pipeline.chat_template import ChatTemplate
from data_pipeline.config import CleaningConfig, SourceConfig, TokenizerConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetError
from data_pipeline.readers import read_documents
from data_pipeline.sample import sample_build_config, sample_dataset

CHAPTERS = {
    "emma": 55,
    "mansfield_park": 48,
    "northanger_abbey": 31,
    "pride_and_prejudice": 61,
    "sense_and_sensibility": 50,
}
HEADING = re.compile(r"(?:VOLUME [IVX]+\s+)?(?:CHAPTER|Chapter) (?:[IVXL]+|\d+)\n")


def test_sample_documents_are_chapters_when_read(tmp_path: Path) -> None:
    source: SourceConfig = sample_build_config("sample:austen", tmp_path).sources[0]
    chapters = dict.fromkeys(CHAPTERS, 0)
    others = []
    for document in read_documents(source):
        text = document.data.decode()
        if HEADING.match(text):
            chapters[document.document_id.split(".")[0]] += 1
            assert len(HEADING.findall(text)) == 1
            assert "VOLUME" not in text[20:]
        else:
            others.append(document.document_id)
    assert chapters == CHAPTERS
    assert others == [f"{name}.txt.gz#000000" for name in CHAPTERS]


def test_sample_dataset_is_built_once_when_asked_for_twice(tmp_path: Path) -> None:
    first = sample_dataset("sample:austen", tmp_path / "austen", vocab_size=1024)
    ledger = first.manifest.ledger
    assert ledger.documents_kept == sum(CHAPTERS.values()) + 1  # the advertisement to Northanger Abbey
    assert ledger.documents_dropped["too_short"] == 4  # title pages
    assert first.split("validation").documents == 10
    stamp = (tmp_path / "austen" / "manifest.json").stat().st_mtime_ns
    assert sample_dataset("sample:austen", tmp_path / "austen", vocab_size=1024).fingerprint == first.fingerprint
    assert (tmp_path / "austen" / "manifest.json").stat().st_mtime_ns == stamp
    Dataset.open(tmp_path / "austen").verify()


def test_sample_names_what_is_shipped_when_asked_for_another(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"There is no sample 'sample:dickens'\. Shipped is: sample:austen, sample:dialogues, "
    ):
        sample_build_config("sample:dickens", tmp_path)


def test_sample_options_are_the_stated_ones_when_not_changed(tmp_path: Path) -> None:
    config = sample_build_config("sample:austen", tmp_path)
    assert config.cleaning == CleaningConfig(unwrap_lines=True, min_characters=200)
    assert config.tokenizer.train is not None
    assert (config.validation_fraction, config.tokenizer.train.vocab_size) == (0.05, 2048)


def test_sample_of_dialogues_holds_conversations_when_read(tmp_path: Path) -> None:
    built = sample_dataset("sample:dialogues", tmp_path / "dialogues")
    ledger = built.manifest.ledger
    assert (ledger.documents_kept, ledger.documents_dropped["empty_answer"]) == (2025, 1)
    assert built.chat_template == ChatTemplate()
    assert all(split.answer_tokens for split in built.manifest.splits.values())
    assert built.split("validation").documents > 50


def test_sample_is_built_with_the_tokenizer_that_is_given(tmp_path: Path) -> None:
    own = sample_dataset("sample:dialogues", tmp_path / "dialogues", vocab_size=1000)
    config = sample_build_config("sample:dialogues", tmp_path / "out", tokenizer_path=own.directory / "tokenizer.model")
    assert config.tokenizer == TokenizerConfig(path=str(own.directory / "tokenizer.model"))
