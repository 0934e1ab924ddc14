"""What is done to a run's paths before the workers see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import RunConfig
from cluster.errors import StorageError
from data_pipeline.config import DataConfig, MixtureEntry
from data_pipeline.errors import DatasetError
from launcher.errors import LauncherError
from launcher.samples import resolve_samples
from launcher.training import absolute


def test_absolute_names_storage_and_every_dataset_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entries = (MixtureEntry(path="a", weight=1.0), MixtureEntry(path="sample:austen", weight=2.0))
    config = absolute(RunConfig(name="x", storage="runs", data=DataConfig(dataset=entries)))
    assert config.storage == str(tmp_path / "runs")
    assert config.data.dataset == (
        MixtureEntry(path=str(tmp_path / "a"), weight=1.0),
        MixtureEntry(path="sample:austen", weight=2.0),
    )


def test_resolve_samples_leaves_other_datasets_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    config = RunConfig(name="x", storage=str(tmp_path / "runs"), data=DataConfig(dataset=str(tmp_path / "data")))
    assert resolve_samples(config, print) == config
    assert not (tmp_path / "runs").exists()


def test_resolve_samples_names_the_key_when_a_dataset_of_a_mixture_is_missing(tmp_path: Path) -> None:
    entries = (MixtureEntry(path="sample:austen"), MixtureEntry(path=str(tmp_path / "absent")))
    config = RunConfig(name="x", storage=str(tmp_path / "runs"), data=DataConfig(dataset=entries))
    with pytest.raises(LauncherError, match=r"data\.dataset\.1\.path is '.*absent', which is no dataset: there is no"):
        resolve_samples(config, print)
    assert not (tmp_path / "runs").exists()


def test_resolve_samples_refuses_a_sample_that_is_not_shipped(tmp_path: Path) -> None:
    config = RunConfig(name="x", storage=str(tmp_path), data=DataConfig(dataset="sample:joyce"))
    with pytest.raises(DatasetError, match="There is no sample 'sample:joyce'"):
        resolve_samples(config, print)


@pytest.mark.parametrize("storage", ["/proc/nope", "file/storage"])
def test_storage_is_judged_before_a_sample_is_built_into_it(storage: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = str(tmp_path / storage)  # an absolute one stays as it is
    config = RunConfig(name="x", storage=path, data=DataConfig(dataset="sample:austen"))
    with pytest.raises(StorageError, match=rf"^storage {path} cannot be written: .*set `storage` to another one"):
        resolve_samples(config, print)
