"""Shipped corpora: `sample:NAME` is built once into the storage, and is an ordinary dataset from then on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.storage.operations import storage_path
from launcher.directories import is_uri, require_dataset

_PREFIX = "sample:"


def is_sample(path: str) -> bool:
    """Whether a dataset is named as a shipped sample."""
    return path.startswith(_PREFIX)


def resolve_samples(
    config: RunConfig, listener: Callable[[dict[str, Any]], None], cache: Path | None = None
) -> RunConfig:
    """Put the absolute path of a built dataset in the place of every `sample:NAME`, building it on first use.

    Args:
        config: Run that may name shipped samples; they are built into `storage/.datasets/NAME` or, where the storage is
            an object store, into `cache`.
        listener: Receives a message when a stage of a build begins.
        cache: Directory of this machine; ~/.cache/longhaul where None.

    Raises:
        LauncherError: A path among the datasets holds none; the message names its key.
        cluster.errors.StorageError: The storage, which takes the samples too, cannot be written.
    """
    _require_datasets(config)
    if any(is_sample(entry.path) for entry in config.data.entries):
        from cluster.run_directory import prepare_storage

        prepare_storage(storage_path(config.storage))
    if is_uri(config.storage):
        directory = (cache or Path.home() / ".cache" / "longhaul") / "datasets"
    else:
        directory = Path(config.storage).resolve() / ".datasets"

    def resolve(path: str) -> str:
        if not is_sample(path):
            return path
        name = path.removeprefix(_PREFIX)
        return str(build_sample(name, directory / name, listener))

    return resolve_datasets(config, resolve)


def _require_datasets(config: RunConfig) -> None:
    one = isinstance(config.data.dataset, str)
    for index, entry in enumerate(config.data.entries):
        if not is_sample(entry.path):
            require_dataset(entry.path, "data.dataset" if one else f"data.dataset.{index}.path")


def resolve_datasets(config: RunConfig, resolve: Callable[[str], str]) -> RunConfig:
    """Replace the path of every dataset of a run."""
    data = config.data
    if isinstance(data.dataset, str):
        return replace(config, data=replace(data, dataset=resolve(data.dataset)))
    entries = tuple(replace(entry, path=resolve(entry.path)) for entry in data.dataset)
    return replace(config, data=replace(data, dataset=entries))


def build_sample(name: str, directory: Path, listener: Callable[[dict[str, Any]], None]) -> Path:
    """Build a shipped sample into `directory`, where it is not there already.

    Returns:
        The dataset's directory.
    """
    from data_pipeline.build import BuildProgress, build_dataset
    from data_pipeline.sample import sample_build_config

    def tell(state: BuildProgress) -> None:
        listener({"type": "phase", "text": f"preparing the sample '{name}': {state.stage}"})

    build_dataset(sample_build_config(_PREFIX + name, directory), progress=tell)
    return directory
