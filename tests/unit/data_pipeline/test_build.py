"""What a build makes of a corpus: every document, an account of those dropped, the same bytes each time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpora import files_of, json_lines
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import build
from data_pipeline.build import UP_TO_DATE, BuildProgress, build_dataset, train_tokenizer_for
from data_pipeline.config import CleaningConfig, DataBuildConfig, SourceConfig, TokenizerConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetError
from data_pipeline.manifest import BuildLedger
from data_pipeline.survey import validation_threshold

MakeConfig = Callable[..., DataBuildConfig]


def _texts(dataset: Dataset, split: str) -> list[str]:
    stream = dataset.split(split)
    places = [stream.document(index) for index in range(stream.documents)]
    return [dataset.tokenizer().decode(stream.read(place.start, place.stop)) for place in places]


def test_build_holds_every_document_when_read_back(make_config: MakeConfig, dataset: Dataset, novel: str) -> None:
    chapters = novel.split("Chapter ")[1:]
    texts = _texts(dataset, "train") + _texts(dataset, "validation")
    assert len(texts) == len(chapters) == dataset.manifest.ledger.documents_kept
    for text in texts:
        number = int(text.split("\n")[0].removeprefix("Chapter "))
        assert text.split() == ("Chapter " + chapters[number - 1]).split()


def test_ledger_adds_up_when_documents_are_dropped(tmp_path: Path, dataset: Dataset) -> None:
    texts = [
        "a sentence that is kept",
        " \n",
        "short",
        "e\u0301t\u00e9 is composed here",
        "another\r\none kept",
    ]
    source = json_lines(tmp_path / "a.jsonl", texts)
    invalid = b"bad \xff byte, but long enough"
    (tmp_path / "b.txt").write_bytes(invalid)
    config = DataBuildConfig(
        name="mixed",
        output=str(tmp_path / "out"),
        sources=(source, SourceConfig(name="b", path=str(tmp_path / "b.txt"))),
        tokenizer=TokenizerConfig(path=str(dataset.directory / "tokenizer.model")),
        cleaning=CleaningConfig(min_characters=10, invalid_utf8="drop"),
    )
    manifest = build_dataset(config)
    assert manifest.ledger == BuildLedger(
        documents_read=6,
        documents_kept=3,
        documents_dropped={"empty": 1, "too_short": 1, "invalid_utf8": 1},
        bytes_read=sum(len(text.encode()) for text in texts) + len(invalid),
        bytes_kept=23 + 22 + 16,
        bytes_dropped={"empty": 2, "too_short": 5, "invalid_utf8": len(invalid)},
        bytes_removed_by_normalisation=2,
    )
    assert [source.name for source in manifest.sources] == ["a", "b"]
    assert manifest.sources[1].ledger.documents_dropped["invalid_utf8"] == 1
    Dataset.open(config.output).verify()


def test_build_is_bit_identical_when_done_twice(make_config: MakeConfig, dataset: Dataset, tmp_path: Path) -> None:
    manifest = build_dataset(make_config(tmp_path / "again"), threads=2)
    assert manifest == dataset.manifest
    assert files_of(tmp_path / "again") == files_of(dataset.directory)


def test_fingerprint_stays_when_only_shard_sizes_change(
    make_config: MakeConfig, dataset: Dataset, tmp_path: Path
) -> None:
    manifest = build_dataset(make_config(tmp_path / "one", shard_tokens=10**9, name="other"))
    assert len(manifest.shards) < len(dataset.manifest.shards)
    assert manifest.fingerprint == dataset.fingerprint


def test_duplicates_share_a_side_when_split(tmp_path: Path, dataset: Dataset) -> None:
    texts = [f"text number {number % 40}, of some length" for number in range(120)]
    config = DataBuildConfig(
        name="duplicates",
        output=str(tmp_path / "out"),
        sources=(json_lines(tmp_path / "a.jsonl", texts), json_lines(tmp_path / "b.jsonl", texts[:40])),
        tokenizer=TokenizerConfig(path=str(dataset.directory / "tokenizer.model")),
        validation_fraction=0.3,
    )
    build_dataset(config)
    built = Dataset.open(config.output)
    train, validation = set(_texts(built, "train")), set(_texts(built, "validation"))
    assert train
    assert validation
    assert not train & validation
    assert len(train | validation) == 40


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50), st.floats(0, 0.999))
def test_validation_threshold_leaves_no_side_empty_when_two_documents_differ(
    hashes: list[int], fraction: float
) -> None:
    below = validation_threshold(np.array(hashes, dtype=np.uint64), fraction)
    inside = sum(value < below for value in hashes)
    if fraction == 0 or len(set(hashes)) < 2:
        assert inside == 0
    else:
        assert 0 < inside < len(hashes)


def test_build_returns_at_once_when_nothing_changed(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "out")
    first = build_dataset(config)
    stamp = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    stages: list[str] = []
    assert build_dataset(config, progress=lambda state: stages.append(state.stage)) == first
    assert set(stages[:-1]) == {"reading"}
    assert stages[-1] == UP_TO_DATE
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == stamp


def test_build_reports_every_stage_when_asked(make_config: MakeConfig, tmp_path: Path) -> None:
    states: list[BuildProgress] = []
    manifest = build_dataset(make_config(tmp_path / "out"), progress=states.append)
    assert [state.stage for state in states] == ["reading", "tokenizer", "encoding", "publishing"]
    assert (states[2].bytes, states[2].tokens) == (manifest.ledger.bytes_kept, manifest.tokens)


def test_tokenizer_alone_is_the_one_of_the_build_when_trained(
    make_config: MakeConfig, dataset: Dataset, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer_for(make_config(tmp_path / "out"))
    assert files_of(tmp_path / "out") == {"tokenizer.model": tokenizer.hash}
    assert tokenizer.hash == dataset.tokenizer_hash
    given = TokenizerConfig(path=str(tmp_path / "out" / "tokenizer.model"))
    manifest = build_dataset(make_config(tmp_path / "out", tokenizer=given))
    assert manifest.fingerprint == dataset.fingerprint
    with pytest.raises(DatasetError, match="holds a finished dataset, whose tokenizer must stay"):
        train_tokenizer_for(make_config(tmp_path / "out"))


def test_build_digest_stays_when_only_places_change(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "a")
    moved = make_config(
        tmp_path / "b",
        sources=(dataclasses.replace(config.sources[0], path=str(tmp_path / "elsewhere.txt")),),
    )
    assert build.build_digest(config) == build.build_digest(moved)
    assert build.build_digest(config) != build.build_digest(make_config(tmp_path / "a", shard_tokens=7))
