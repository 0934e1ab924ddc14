"""Builds that cannot be done or are cut short: what is refused, and that nothing half made is left."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpora import files_of, json_lines

from data_pipeline import build
from data_pipeline.build import BuildProgress, build_dataset
from data_pipeline.config import DataBuildConfig, SourceConfig, TokenizerConfig, TokenizerTrainingConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import CorpusError, DatasetDamagedError, DatasetError, TokenizerError

MakeConfig = Callable[..., DataBuildConfig]


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
        sources=(json_lines(tmp_path / "a.jsonl", ["one text", "two texts"]),),
        tokenizer=TokenizerConfig(path=str(dataset.directory / "tokenizer.model")),
    )
    build_dataset(config)
    json_lines(tmp_path / "a.jsonl", ["one text", "two text!"])
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
    assert files_of(output) == files_of(dataset.directory)


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
    assert files_of(output) == files_of(dataset.directory)


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
    config = DataBuildConfig(
        name="n", output=str(tmp_path / "out"), sources=(json_lines(tmp_path / "a.jsonl", ["", " "]),)
    )
    with pytest.raises(CorpusError, match="No document of 'n' is left after cleaning: 2 read, 2 empty"):
        build_dataset(config)


def test_build_refuses_when_the_text_changes_between_the_passes(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataBuildConfig(
        name="moving",
        output=str(tmp_path / "out"),
        sources=(json_lines(tmp_path / "a.jsonl", ["one text", "two texts"]),),
        tokenizer=TokenizerConfig(path=str(dataset.directory / "tokenizer.model")),
    )

    def change(state: BuildProgress) -> None:
        if state.stage == "tokenizer":
            json_lines(tmp_path / "a.jsonl", ["one text", "two textz"])

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


def test_build_writes_nothing_when_the_vocabulary_is_too_large(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "out", tokenizer=TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=400_000)))
    with pytest.raises(TokenizerError, match="largest that works"):
        build_dataset(config)
    assert not (tmp_path / "out").exists()
