"""Shipped corpora: `sample:NAME` is built once into the storage, and is an ordinary dataset from then on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.storage.operations import storage_path
from launcher.directories import is_uri, require_dataset
from launcher.errors import LauncherError

_PREFIX = "sample:"
_NAMED_DIGITS = 8
"""Of the hash by which tokenizers, and samples built with them, are told apart on disk."""


def is_sample(path: str) -> bool:
    """Whether a dataset is named as a shipped sample."""
    return path.startswith(_PREFIX)


def resolve_samples(
    config: RunConfig, listener: Callable[[dict[str, Any]], None], cache: Path | None = None
) -> RunConfig:
    """Put the absolute path of a built dataset in the place of every `sample:NAME`, building it on first use.

    Args:
        config: Run that may name shipped samples; they are built into `storage/.datasets/NAME` or, where the storage is
            an object store, into `cache`. Where it begins with given weights, with the tokenizer of those.
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
        if config.initialize_from is None:
            return str(build_sample(name, directory / name, listener))
        tokenizer = keep_tokenizer_of_weights(config, path, directory / "tokenizers")
        return str(build_sample(name, directory / f"{name}-{tokenizer.stem}", listener, tokenizer))

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


def build_sample(
    name: str, directory: Path, listener: Callable[[dict[str, Any]], None], tokenizer: Path | None = None
) -> Path:
    """Build a shipped sample into `directory`, where it is not there already.

    Args:
        name: Without its prefix.
        directory: Becomes the dataset.
        listener: Receives a message when a stage of the build begins.
        tokenizer: SentencePiece model to build it with; None trains one on the sample.

    Returns:
        The dataset's directory.
    """
    from data_pipeline.build import BuildProgress, build_dataset
    from data_pipeline.sample import sample_build_config

    def tell(state: BuildProgress) -> None:
        listener({"type": "phase", "text": f"preparing the sample '{name}': {state.stage}"})

    build_dataset(sample_build_config(_PREFIX + name, directory, tokenizer_path=tokenizer), progress=tell)
    return directory


def keep_tokenizer_of_weights(config: RunConfig, sample: str, directory: Path) -> Path:
    """Copy the tokenizer of the weights that a run begins with, to build a sample with it.

    A run that has begun holds a copy of its own, which is taken where the weights are gone.

    Args:
        config: The run, with `initialize_from`; paths absolute.
        sample: That is to be built, for messages.
        directory: Takes the copy, named by its hash.

    Raises:
        LauncherError: There is no such tokenizer.
    """
    from cluster.errors import ClusterError
    from cluster.initial_weights import find_initial_weights
    from cluster.run_directory import TOKENIZER_NAME
    from data_pipeline.publish import write_atomically
    from data_pipeline.tokenizer import Tokenizer
    from llm.errors import ModelError

    own = storage_path(config.storage) / config.name / TOKENIZER_NAME
    try:
        place = find_initial_weights(str(config.initialize_from)).tokenizer_path
    except (ClusterError, ModelError, OSError):
        if not own.is_file():
            raise
        place = own
    if not place.is_file():
        raise LauncherError(
            f"data.dataset is {sample}, which is built with the tokenizer of the weights that the run begins with, and "
            f"there is no {place}. Name weights with a SentencePiece tokenizer in initialize_from, or a dataset that "
            "was built with theirs."
        )
    model = place.read_bytes()
    copy = directory / f"{Tokenizer.from_bytes(model, str(place)).hash[:_NAMED_DIGITS]}.model"
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(copy, model)
    return copy
