from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import build
from data_pipeline.build import UP_TO_DATE, BuildProgress, build_dataset, train_tokenizer_for
from data_pipeline.config import (
    CleaningConfig,
    DataBuildConfig,
    SourceConfig,
    TokenizerConfig,
    TokenizerTrainingConfig,
)
from data_pipeline.dataset import Dataset
from data_pipeline.errors import CorpusError, DatasetDamagedError, DatasetError, TokenizerError
from data_pipeline.manifest import BuildLedger
from data_pipeline.publish import file_hashes
from data_pipeline.survey import validation_threshold

MakeConfig = Callable[..., DataBuildConfig]


def _lines(path: Path, texts: list[str]) -> SourceConfig:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return SourceConfig(name=path.stem, path=str(path))


def _texts(dataset: Dataset, split: str) -> list[str]:
    stream = dataset.split(split)
    places = [stream.document(index) for index in range(stream.documents)]
    return [dataset.tokenizer().decode(stream.read(place.start, place.stop)) for place in places]


def _files(directory: Path) -> dict[str, str]:
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): file_hashes(path).hash for path in found}


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
    source = _lines(tmp_path / "a.jsonl", texts)
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
    assert _files(tmp_path / "again") == _files(dataset.directory)


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
        sources=(_lines(tmp_path / "a.jsonl", texts), _lines(tmp_path / "b.jsonl", texts[:40])),
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


def test_build_refuses_or_replaces_when_another_dataset_is_there(make_config: MakeConfig, tmp_path: Path) -> None:
    first = build_dataset(make_config(tmp_path / "out"))
    other = make_config(tmp_path / "out", shard_tokens=10**9, validation_fraction=0.4)
    with pytest.raises(DatasetError, match=r"was built with another configuration\. Pass --fresh to replace it"):
        build_dataset(other)
    assert Dataset.open(tmp_path / "out").manifest == first
    second = build_dataset(other, fresh=True)
    assert Dataset.open(tmp_path / "out").manifest == second != first
    assert len(list((tmp_path / "out" / "shards").iterdir())) == len(second.shards) == 2


def test_build_refuses_when_the_text_changed(tmp_path: Path, dataset: Dataset) -> None:
    config = DataBuildConfig(
        name="changing",
        output=str(tmp_path / "out"),
        sources=(_lines(tmp_path / "a.jsonl", ["one text", "two texts"]),),
        tokenizer=TokenizerConfig(path=str(dataset.directory / "tokenizer.model")),
    )
    build_dataset(config)
    _lines(tmp_path / "a.jsonl", ["one text", "two text!"])
    with pytest.raises(DatasetError, match="was built from other text or with another tokenizer"):
        build_dataset(config)


@pytest.mark.parametrize("step", ["second rename", "manifest", "encode"])
def test_build_leaves_nothing_loadable_when_killed_at(
    step: str, make_config: MakeConfig, dataset: Dataset, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    _die_while_building(make_config(output), step)
    with pytest.raises(DatasetError, match="its build did not finish"):
        Dataset.open(output)
    assert list(output.glob(".building-*"))
    build_dataset(make_config(output))
    assert _files(output) == _files(dataset.directory)


@pytest.mark.parametrize("step", ["second rename", "manifest"])
def test_build_leaves_nothing_loadable_when_killed_while_it_replaces_a_dataset_at(
    step: str, make_config: MakeConfig, dataset: Dataset, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    build_dataset(make_config(output, validation_fraction=0.4))
    _die_while_building(make_config(output), step)
    if step == "manifest":  # Nothing was replaced yet.
        Dataset.open(output).verify()
    else:
        with pytest.raises(DatasetError, match="its build did not finish"):
            Dataset.open(output)
    build_dataset(make_config(output), fresh=True)
    assert _files(output) == _files(dataset.directory)


def _die_while_building(config: DataBuildConfig, step: str) -> None:
    """Builds in a process of its own that dies without any clean-up."""
    child = os.fork()
    if child == 0:
        if step == "encode":
            build.encode_corpus = lambda *_: os._exit(9)  # type: ignore[assignment]
        elif step == "manifest":
            build._manifest = lambda *_: os._exit(9)  # type: ignore[assignment]
        else:
            real_rename, seen = os.rename, []

            def rename(source: Path, target: Path) -> None:
                real_rename(source, target)
                # Of the build's own renames the first is the tokenizer's, inside the working directory.
                if ".building-" not in str(target):
                    seen.append(target)
                if len(seen) == 2:
                    os._exit(9)

            os.rename = rename  # type: ignore[assignment]
        build_dataset(config, fresh=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_build_refuses_when_another_is_at_work(make_config: MakeConfig, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(DatasetError, match="Another build is writing"):
        build_dataset(make_config(tmp_path))
    os.close(descriptor)


def test_build_cleans_up_when_the_disk_is_full(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("data_pipeline.shards.sync_file", full)
    with pytest.raises(DatasetError, match=rf"The disk of {output} is full \(No space left on device\)"):
        build_dataset(make_config(output))
    assert not output.exists()


def test_build_says_so_when_the_disk_under_a_shard_is_full(make_config: MakeConfig, tmp_path: Path) -> None:
    from data_pipeline.shards import ShardWriter

    path = tmp_path / "full"
    path.symlink_to("/dev/full")  # never by its own name: whoever cleans up as root would remove the device
    writer = ShardWriter(path, np.dtype(np.uint16))
    writer.add(np.arange(1 << 20, dtype=np.uint16), "id", "source", 0)
    with pytest.raises(OSError, match="No space left") as caught:
        writer.finish("shards/x", "train")
    assert caught.value.errno == errno.ENOSPC


def test_build_leaves_no_output_when_the_corpus_is_missing(tmp_path: Path) -> None:
    config = DataBuildConfig(
        name="n",
        output=str(tmp_path / "out"),
        sources=(SourceConfig(name="s", path=str(tmp_path / "nowhere.txt")),),
    )
    with pytest.raises(CorpusError, match="does not exist"):
        build_dataset(config)
    assert not (tmp_path / "out").exists()


def test_build_refuses_when_everything_is_dropped(tmp_path: Path) -> None:
    config = DataBuildConfig(name="n", output=str(tmp_path / "out"), sources=(_lines(tmp_path / "a.jsonl", ["", " "]),))
    with pytest.raises(CorpusError, match="No document of 'n' is left after cleaning: 2 read, 2 empty"):
        build_dataset(config)


def test_build_refuses_when_the_text_changes_between_the_passes(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataBuildConfig(
        name="moving",
        output=str(tmp_path / "out"),
        sources=(_lines(tmp_path / "a.jsonl", ["one text", "two texts"]),),
        tokenizer=TokenizerConfig(path=str(dataset.directory / "tokenizer.model")),
    )

    def change(state: BuildProgress) -> None:
        if state.stage == "tokenizer":
            _lines(tmp_path / "a.jsonl", ["one text", "two textz"])

    with pytest.raises(CorpusError, match="changed while it was built"):
        build_dataset(config, progress=change)


def test_build_refuses_when_the_dataset_there_is_damaged(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "out")
    manifest = build_dataset(config)
    (tmp_path / "out" / manifest.shards[0].file).unlink()
    with pytest.raises(DatasetDamagedError, match=r"is missing\..*rebuild with `data build CONFIG --fresh`"):
        build_dataset(config)
    build_dataset(config, fresh=True)
    Dataset.open(tmp_path / "out").verify()


def test_build_refuses_when_the_tokenizer_there_was_altered(make_config: MakeConfig, tmp_path: Path) -> None:
    build_dataset(make_config(tmp_path / "out"))
    with (tmp_path / "out" / "tokenizer.model").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DatasetDamagedError, match="is not the tokenizer that the dataset was built with"):
        build_dataset(make_config(tmp_path / "out"))


def test_build_reports_every_stage_when_asked(make_config: MakeConfig, tmp_path: Path) -> None:
    states: list[BuildProgress] = []
    manifest = build_dataset(make_config(tmp_path / "out"), progress=states.append)
    assert [state.stage for state in states] == ["reading", "tokenizer", "encoding", "publishing"]
    assert (states[2].bytes, states[2].tokens) == (manifest.ledger.bytes_kept, manifest.tokens)


def test_tokenizer_alone_is_the_one_of_the_build_when_trained(
    make_config: MakeConfig, dataset: Dataset, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer_for(make_config(tmp_path / "out"))
    assert _files(tmp_path / "out") == {"tokenizer.model": tokenizer.hash}
    assert tokenizer.hash == dataset.tokenizer_hash
    given = TokenizerConfig(path=str(tmp_path / "out" / "tokenizer.model"))
    manifest = build_dataset(make_config(tmp_path / "out", tokenizer=given))
    assert manifest.fingerprint == dataset.fingerprint
    with pytest.raises(DatasetError, match="holds a finished dataset, whose tokenizer must stay"):
        train_tokenizer_for(make_config(tmp_path / "out"))


def test_build_writes_nothing_when_the_vocabulary_is_too_large(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "out", tokenizer=TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=400_000)))
    with pytest.raises(TokenizerError, match="largest that works"):
        build_dataset(config)
    assert not (tmp_path / "out").exists()


def test_build_digest_stays_when_only_places_change(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "a")
    moved = make_config(
        tmp_path / "b",
        sources=(dataclasses.replace(config.sources[0], path=str(tmp_path / "elsewhere.txt")),),
    )
    assert build.build_digest(config) == build.build_digest(moved)
    assert build.build_digest(config) != build.build_digest(make_config(tmp_path / "a", shard_tokens=7))
