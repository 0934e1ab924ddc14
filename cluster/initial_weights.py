"""Weights that a run begins with: those of another run's checkpoint, or of a Hugging Face directory.

What was named is looked up when the run begins and noted in its run.json: all ranks, and every attempt until there is a
checkpoint of the run's own, begin with the very same weights. After that nobody looks at them again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from cluster.checkpoint import CheckpointInfo, CheckpointReader, VerifiedFiles, find_checkpoint
from cluster.checkpoint.manifest import MANIFEST_NAME
from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.continuation import Beginning, agreed_damage
from cluster.engines.initial_state import InitialState, WeightsByName, WeightsOf, WithFreshHead
from cluster.engines.protocol import StateSource
from cluster.errors import RunNotFoundError, RunRefusedError
from cluster.resolution import resolve_model, trained_model
from cluster.run_directory import RUN_NAME, TOKENIZER_NAME
from cluster.storage.operations import StoragePath, storage_path
from cluster.storage.retry import retried
from cluster.tasks import LABELS, learns_labels
from cluster.topology import Topology
from data_pipeline.plan import DataPlan
from llm.config import ModelConfig
from llm.hugging_face.configuration import CONFIG_FILE, differences, read_config
from llm.hugging_face.weights import HuggingFaceWeights

logger = logging.getLogger(__name__)

INITIALIZED_FROM = "initialized_from"
"""Key in run.json and in the event `started`."""
_MAY_DIFFER = (
    "head",
    "embedding_dropout",
    "attention_dropout",
    "residual_dropout",
    "router_aux_loss_coef",
    "router_z_loss_coef",
)
"""Fields that belong to a training, not to the weights."""
_SAMPLED_BYTES = 2**20


@dataclass(frozen=True)
class InitialWeights:
    """Where the weights are and whose they are."""

    directory: StoragePath
    """The checkpoint's own directory, or the Hugging Face directory."""
    model: ModelConfig
    """Whose weights they are; vocab_size known."""
    info: CheckpointInfo | None
    """Of a checkpoint; None for a Hugging Face directory."""

    @property
    def run_directory(self) -> StoragePath | None:
        """The run whose checkpoint it is."""
        return self.directory.parent.parent if self.info is not None else None

    @property
    def tokenizer_path(self) -> StoragePath:
        """Where the tokenizer lies that they were trained with, if it is a SentencePiece model."""
        return (self.run_directory or self.directory) / TOKENIZER_NAME

    @cached_property
    def tokenizer_hash(self) -> str | None:
        """xxh3_128 of the tokenizer that they were trained with; None where a directory has no SentencePiece model."""
        if self.info is not None and self.info.manifest is not None:
            return str(self.info.manifest.run["data_plan"]["tokenizer"])
        path = self.tokenizer_path
        return xxhash.xxh3_128_hexdigest(path.read_bytes()) if path.is_file() else None

    @cached_property
    def fingerprint(self) -> str:
        """Of a checkpoint the manifest's checksum, which is that of all its files.

        Of a directory xxh3_128 over config.json and, for each file of weights, its name, its size and the MiB at its
        beginning and at its end: not all of what may be hundreds of GB, but all that training changes shows there.
        """
        if self.info is not None:
            return str(json.loads((self.directory / MANIFEST_NAME).read_bytes())["checksum"])
        assert isinstance(self.directory, Path)
        found = xxhash.xxh3_128((self.directory / CONFIG_FILE).read_bytes())
        for path in HuggingFaceWeights(self.directory).files:
            size = path.stat().st_size
            found.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                found.update(file.read(_SAMPLED_BYTES))
                file.seek(max(size - _SAMPLED_BYTES, 0))
                found.update(file.read(_SAMPLED_BYTES))
        return found.hexdigest()

    def lineage(self, reference: str) -> dict[str, Any]:
        """What the record says of them, as JSON values.

        Args:
            reference: What the configuration names.
        """
        said = {"reference": reference, "directory": str(self.directory), "fingerprint": self.fingerprint}
        if self.info is not None and self.info.manifest is not None:
            run = self.info.manifest.run
            return {**said, "name": run["config"]["name"], "step": self.info.step, "wandb_id": run["wandb_id"]}
        assert isinstance(self.directory, Path)
        return {**said, "name": self.directory.name, "model_type": read_config(self.directory).family.model_type}


def find_initial_weights(reference: str) -> InitialWeights:
    """Look up what `initialize_from` names: a run, of which the newest usable checkpoint, a checkpoint, or a directory.

    Reads what describes the weights, not the weights themselves.

    Raises:
        RunNotFoundError: It is none of them, or the run has no usable checkpoint.
        CheckpointError: The checkpoint cannot be used.
        llm.errors.HuggingFaceError: The directory describes what this program does not compute.
    """
    place = storage_path(reference)
    if place.parent.name == "checkpoints" and _has(place, MANIFEST_NAME):
        return _of_checkpoint(find_checkpoint(place.parent.parent, int(place.name.removeprefix("step-"))))
    if _has(place, RUN_NAME):
        return _of_checkpoint(find_checkpoint(place))
    if isinstance(place, Path) and _has(place, CONFIG_FILE):
        return InitialWeights(place, read_config(place).config, None)
    raise RunNotFoundError(
        f"initialize_from is {reference}, which is no run ({RUN_NAME}), no checkpoint (checkpoints/step-…/"
        f"{MANIFEST_NAME}) and no Hugging Face directory on a disk ({CONFIG_FILE}), or cannot be seen from here. Name "
        "one of them."
    )


def contradictions(weights: ModelConfig, asked: ModelConfig) -> list[str]:
    """Fields by which a model cannot begin with the weights of another, or would compute something else with them.

    Dropout and the weights of routing losses are a training's own, and so is the longest sequence where positions are
    rotated, not learned.
    """
    free = set(_MAY_DIFFER)
    if weights.position_embedding == asked.position_embedding == "rope":
        free.add("max_position_embeddings")
    return [name for name in differences(weights, asked) if name not in free]


def told_contradictions(weights: ModelConfig, asked: ModelConfig) -> str:
    """The same in words, without what only follows from other fields; empty where there is none."""
    different = contradictions(weights, asked)
    spelled = {
        name: [json.dumps(getattr(model, name), default=asdict) for model in (asked, weights)] for name in different
    }
    apart = {name: both for name, both in spelled.items() if both[0] != both[1]}
    return ", ".join(
        f"model.{name} is {mine} and {theirs} there" for name, (mine, theirs) in (apart or spelled).items()
    )


def check_vocabulary(config: RunConfig, vocab_size: int) -> None:
    """Refuse a dataset whose tokens the weights have no rows for.

    Raises:
        RunRefusedError: There are more tokens than rows of the embedding.
    """
    embedded = config.model.vocab_size
    if config.initialize_from is not None and embedded is not None and embedded < vocab_size:
        raise RunRefusedError(
            f"initialize_from is {config.initialize_from}, whose embedding holds {embedded} tokens, and the dataset's "
            f"tokenizer has {vocab_size} pieces: it is another tokenizer. Build the dataset with the one that these "
            "weights were trained with (`tokenizer: {path: …}`)."
        )


def check_initial_weights(config: RunConfig, plan: DataPlan, facts: Mapping[str, Any]) -> InitialWeights:
    """Look up the weights that a run begins with, and make sure that they are of its model and tokenizer.

    Args:
        config: The run, with `initialize_from`; paths absolute.
        plan: Its data.
        facts: What its run.json holds, where it has begun and has no checkpoint yet.

    Raises:
        RunRefusedError: They do not go with the run; the message says what does.
        RunNotFoundError: See `find_initial_weights`, as for the other errors.
    """
    assert config.initialize_from is not None
    weights = find_initial_weights(_place(config, facts))
    if weights.run_directory == storage_path(config.storage) / config.name:
        raise RunRefusedError(
            f"initialize_from is {config.initialize_from}, which is the run itself: it goes on by the same command "
            "without it. Name another run, or give this one another name."
        )
    dataset, trained_with = plan.datasets[0], weights.tokenizer_hash
    if trained_with is None:
        logger.warning(
            "whether %s was trained with the dataset's tokenizer is not known: it has no %s to compare",
            weights.directory,
            TOKENIZER_NAME,
        )
    elif trained_with != dataset.tokenizer_hash:
        raise RunRefusedError(
            f"data.dataset: {dataset.directory} was built with tokenizer {dataset.tokenizer_hash}, and the weights of "
            f"{weights.directory} were trained with {trained_with}: their token ids mean different text. Build the "
            f"dataset with `tokenizer: {{path: {weights.tokenizer_path}}}`."
        )
    has_text_head = weights.model.head is None or weights.model.tie_word_embeddings
    if not has_text_head and not learns_labels(config.task):
        raise RunRefusedError(
            f"task is {config.task}, and initialize_from is {config.initialize_from}, which was trained to label and "
            "has no weights of an output for text. Name the run that it began with, or a task that learns labels."
        )
    asked = resolve_model(config.model, dataset.vocab_size)
    if listed := told_contradictions(weights.model, asked):
        raise RunRefusedError(
            f"initialize_from is {config.initialize_from}, whose weights are of another model: {listed}. Leave these "
            "keys out of the configuration, which takes them from there; or begin anew with --fresh, where the weights "
            "have changed since the run began."
        )
    _check_unchanged(weights, config, facts)
    return weights


def beginning(
    config: RunConfig,
    model: ModelConfig,
    facts: Mapping[str, Any],
    *,
    topology: Topology,
    collectives: Collectives,
    labels: Mapping[str, Any] | None = None,
) -> Beginning:
    """The state before the first step, on all ranks: random values by the seed, or the weights to begin with.

    A head of labels is taken with the weights where these learned the very same labels; else it is new.

    Args:
        config: The run.
        model: Its shape, with the vocabulary's size.
        facts: What its run.json holds, equal on all ranks.
        labels: What its outputs are to mean, where it learns labels, as `cluster.tasks.labels_as_dict` has it.
        topology: Place of this rank.
        collectives: Of the ranks.

    Raises:
        RunRefusedError: The weights are damaged, of another model, or not those that the run began with.
        CheckpointUnreadableError: Some rank cannot read them here and now.
    """
    if config.initialize_from is None:
        return Beginning(InitialState(model, config.seed))
    found = find_initial_weights(_place(config, facts)) if topology.is_main else None
    weights = find_initial_weights(collectives.from_main(str(found.directory) if found is not None else ""))
    _check_unchanged(weights, config, facts)
    if different := contradictions(weights.model, model):
        raise RunRefusedError(
            f"the weights of {weights.directory} are of another model: {', '.join(different)} differ."
        )
    lineage = weights.lineage(config.initialize_from)
    logger.info("beginning with the weights of %s", weights.directory)
    state = _state(weights, topology, collectives)
    if model.head is not None:
        learned = (
            None if weights.info is None or weights.info.manifest is None else weights.info.manifest.run.get(LABELS)
        )
        is_kept = weights.model.head == model.head and learned == labels
        lineage["head"] = "kept" if is_kept else "new"
        if not is_kept:
            state = WithFreshHead(state, InitialState(model, config.seed))
        logger.info("the head is %s", "that of those weights" if is_kept else "new: its values follow from the seed")
    return Beginning(state, lineage)


def _state(weights: InitialWeights, topology: Topology, collectives: Collectives) -> StateSource:
    info = weights.info
    if info is None:
        assert isinstance(weights.directory, Path)
        return WeightsByName(HuggingFaceWeights(weights.directory).read)
    assert info.manifest is not None
    damage = agreed_damage(VerifiedFiles(info), topology, collectives)
    if damage is not None:
        raise RunRefusedError(
            f"the checkpoint to begin with is damaged: {damage} Name another one of its run, as in "
            f"initialize_from={info.directory.parent / 'step-…'}."
        )
    return WeightsOf(CheckpointReader(info.directory, info.manifest))


def _place(config: RunConfig, facts: Mapping[str, Any]) -> str:
    """What was found when the run began, as long as the configuration names the same; else what it names."""
    noted = _noted(config, facts)
    return str(noted["directory"]) if noted is not None else str(config.initialize_from)


def _noted(config: RunConfig, facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    noted: Mapping[str, Any] | None = facts.get(INITIALIZED_FROM)
    return noted if noted is not None and noted["reference"] == config.initialize_from else None


def _check_unchanged(weights: InitialWeights, config: RunConfig, facts: Mapping[str, Any]) -> None:
    noted = _noted(config, facts)
    if noted is not None and noted["fingerprint"] != weights.fingerprint:
        raise RunRefusedError(
            f"the weights of {weights.directory} have the fingerprint {weights.fingerprint}, and had "
            f"{noted['fingerprint']} when the run began, which has no checkpoint of its own yet: its curve would be "
            "another. Bring them back, or begin anew with --fresh."
        )


def _of_checkpoint(info: CheckpointInfo) -> InitialWeights:
    assert info.manifest is not None
    return InitialWeights(info.directory, trained_model(info.manifest), info)


def _has(place: StoragePath, name: str) -> bool:
    path = place / name
    return retried(path.is_file, f"looking for {path}")
