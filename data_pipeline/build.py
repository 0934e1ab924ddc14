"""Building a dataset: corpora are read, cleaned, split, tokenized and written as shards, the manifest last.

The corpora are read twice. The first pass decides the split and gathers the tokenizer's training sample,
keeping eight bytes of hash per document; the second encodes. Files are written in a working directory inside
the output and renamed into place, so a build that is killed at any instant leaves no manifest, and what it
left is removed by the next one.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.config import CONVERSATION_FIELDS, DataBuildConfig
from data_pipeline.dataset import Dataset
from data_pipeline.encode import EncodedDataset, encode_corpus
from data_pipeline.errors import DatasetError
from data_pipeline.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    TOKENIZER_FILE,
    TUNING_SCHEMA_VERSION,
    Manifest,
    fingerprint_of,
)
from data_pipeline.publish import digest, sync_directory, write_atomically
from data_pipeline.shards import token_dtype
from data_pipeline.survey import BuildProgress, ProgressCallback, Survey, survey_corpus
from data_pipeline.tokenizer import Tokenizer, train_tokenizer

__all__ = ["UP_TO_DATE", "BuildProgress", "build_dataset", "train_tokenizer_for"]

BUILD_VERSION = 1
"""Raised by every change of code that alters what a build makes of the same text."""

UP_TO_DATE = "up to date"
"""Stage that is told last where the dataset is there already."""

_WORKING_PREFIX = ".building-"

logger = logging.getLogger(__name__)


def build_dataset(
    config: DataBuildConfig,
    *,
    progress: ProgressCallback | None = None,
    fresh: bool = False,
    threads: int = 1,
) -> Manifest:
    """Builds a dataset, or returns the manifest of the one that is there where it was built the same way.

    Of a dataset that is there the text, the configuration, the manifest, the tokenizer and the sizes of the shards are
    compared; `Dataset.verify` compares every byte.

    Args:
        config: What to build.
        progress: Told now and then how far the build is.
        fresh: Replace a dataset that was built otherwise, or is damaged.
        threads: Threads of the tokenizer; they do not change the result.

    Returns:
        The manifest.

    Raises:
        CorpusError, TokenizerError: The input is not usable.
        DatasetError: Another dataset is in the way, another build is at work, or the disk is full.
    """
    output = Path(config.output)
    with _lone_builder(output):
        existing = None if fresh else _existing(output, config)
        given = None if config.tokenizer.path is None else Tokenizer.load(config.tokenizer.path)
        survey = survey_corpus(config, progress)
        if existing is not None:
            if existing.content_digest == survey.content_digest and (
                given is None or given.hash == existing.tokenizer_hash
            ):
                _tell(progress, BuildProgress(UP_TO_DATE, survey.ledger.documents_read, survey.ledger.bytes_read))
                return existing
            raise DatasetError(_in_the_way(output, "from other text or with another tokenizer"))
        with _working_directory(output) as working:
            _tell(progress, BuildProgress("tokenizer", survey.ledger.documents_read, survey.ledger.bytes_read))
            tokenizer = given or _train(config, survey, working / TOKENIZER_FILE)
            write_atomically(working / TOKENIZER_FILE, tokenizer.model)
            encoded = encode_corpus(config, survey, tokenizer, working, progress, threads)
            manifest = _manifest(config, survey, tokenizer, encoded)
            if problem := manifest.problem():
                raise DatasetError(
                    f"The build of {output} does not add up and is not published: {problem}. Please report this."
                )
            _tell(
                progress,
                BuildProgress("publishing", manifest.ledger.documents_read, manifest.ledger.bytes_read),
            )
            _publish(working, output, manifest)
    return manifest


def train_tokenizer_for(config: DataBuildConfig, *, progress: ProgressCallback | None = None) -> Tokenizer:
    """Trains the tokenizer of a data config and writes `tokenizer.model` to its output, nothing else.

    Raises:
        DatasetError: A dataset is there already, whose tokenizer it would replace.
    """
    output = Path(config.output)
    with _lone_builder(output):
        if (output / MANIFEST_FILE).exists():
            raise DatasetError(
                f"{output} holds a finished dataset, whose tokenizer must stay. Choose another output, "
                f"or use {output / TOKENIZER_FILE} as it is."
            )
        survey = survey_corpus(config, progress)
        return _train(config, survey, output / TOKENIZER_FILE)


def build_digest(config: DataBuildConfig) -> str:
    """Returns the hash of what a build is asked to do; where things lie on disk does not count."""
    document = dataclasses.asdict(config)
    del document["output"]
    document["tokenizer"]["path"] = None if config.tokenizer.path is None else "given"
    for source in document["sources"]:
        del source["path"]
        for key in CONVERSATION_FIELDS:  # what is not used is not named, so that datasets of text keep their digests
            if source[key] is None:
                del source[key]
    if config.labels is None:
        del document["labels"]
    if config.template is None:
        del document["chat_template"]
    else:
        document["chat_template"] = dataclasses.asdict(config.template)
    return digest({"build_version": BUILD_VERSION, "config": document})


def _train(config: DataBuildConfig, survey: Survey, path: Path) -> Tokenizer:
    if config.tokenizer.train is None:
        raise DatasetError(
            f"The data config of {config.name!r} takes its tokenizer from {config.tokenizer.path}: there "
            "is none to train. "
            "Set tokenizer.train instead of tokenizer.path."
        )
    return train_tokenizer(survey.sample_texts(), config.tokenizer.train, path)


def _existing(output: Path, config: DataBuildConfig) -> Manifest | None:
    """Returns the manifest of the dataset at the output, or None where there is none."""
    if not (output / MANIFEST_FILE).exists():
        return None
    manifest = Manifest.load(output)
    if manifest.build_digest != build_digest(config):
        raise DatasetError(_in_the_way(output, "with another configuration"))
    Dataset.open(output).tokenizer()  # both compare what they open with the manifest
    return manifest


def _in_the_way(output: Path, how: str) -> str:
    return (
        f"{output} holds a dataset that was built {how}. Pass --fresh to replace it, or choose another "
        "output: "
        "runs that trained on it can only be continued while it is there."
    )


@contextmanager
def _lone_builder(output: Path) -> Iterator[None]:
    """Makes the output directory and keeps other builds out of it; the lock ends with the process."""
    made = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    except (FileExistsError, NotADirectoryError) as error:
        raise DatasetError(f"The output {output} is not a directory. Choose another output.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(f"Another build is writing {output}. Wait for it, or choose another output.") from error
        for leftover in output.glob(f"{_WORKING_PREFIX}*"):
            logger.info("removing %s, left by a build that did not finish", leftover)
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)
        if made and not any(output.iterdir()):
            output.rmdir()


@contextmanager
def _working_directory(output: Path) -> Iterator[Path]:
    """Gives a directory inside the output, removed at the end; turns a full disk into an error for people."""
    working = output / f"{_WORKING_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        (working / "shards").mkdir(parents=True)
        yield working
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DatasetError(
            f"The disk of {output} is full ({error.strerror}); the build stopped and removed what it had "
            "written. "
            "Free some space, or choose an output on another disk, and run the same command again."
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _publish(working: Path, output: Path, manifest: Manifest) -> None:
    """Renames the files into place, the manifest last. While one dataset replaces another there is none."""
    (output / MANIFEST_FILE).unlink(missing_ok=True)
    sync_directory(output)
    shards = output / "shards"
    shards.mkdir(exist_ok=True)
    for record in manifest.shards:
        os.rename(working / record.file, output / record.file)
    os.rename(working / TOKENIZER_FILE, output / TOKENIZER_FILE)
    wanted = {output / record.file for record in manifest.shards}
    for stale in shards.glob("*.arrow"):
        if stale not in wanted:
            stale.unlink()
    sync_directory(shards)
    sync_directory(output)
    write_atomically(output / MANIFEST_FILE, manifest.to_bytes())


def _manifest(config: DataBuildConfig, survey: Survey, tokenizer: Tokenizer, encoded: EncodedDataset) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION if config.template is None and config.labels is None else TUNING_SCHEMA_VERSION,
        name=config.name,
        fingerprint=fingerprint_of(tokenizer.hash, encoded.splits, encoded.labels),
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        token_dtype=token_dtype(tokenizer.vocab_size).name,
        build_digest=build_digest(config),
        content_digest=survey.content_digest,
        splits=encoded.splits,
        ledger=encoded.ledger,
        sources=encoded.sources,
        shards=encoded.shards,
        labels=encoded.labels,
        chat_template=config.template,
    )


def _tell(progress: Callable[[BuildProgress], None] | None, state: BuildProgress) -> None:
    if progress is not None:
        progress(state)
