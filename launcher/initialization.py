"""The key `initialize_from`: the model section of what it names, filled in where nothing is stated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.config import RunConfig
from cluster.errors import ClusterError
from cluster.storage.operations import storage_path
from launcher.directories import from_root
from launcher.errors import ConfigError
from launcher.yaml_file import parse_yaml
from llm.config import ModelConfig
from llm.errors import ModelError

_NOT_TAKEN = ("attention", "experts", "head")
"""Fields that say how a model is computed, a choice of where it is and not of whose weights it has; and the head, which
follows from the task."""


def with_initialization(tree: dict[str, Any], *, fresh: bool = False) -> dict[str, Any]:
    """Fill in the model whose weights a run begins with, so that the configuration of a run holds numbers.

    A run that has begun knows its model itself: what it began with is not looked at any more, and may be gone.

    Args:
        tree: Of a run, not validated yet. What is not allowed in it is left to the validation.
        fresh: The run begins anew, so that what it began with before does not come first.

    Raises:
        ConfigError: The source cannot be used, or the tree states another model than it has.
    """
    reference, stated = tree.get("initialize_from"), tree.get("model", {})
    if not isinstance(reference, str) or not isinstance(stated, dict):
        return tree
    source = _model_of(tree, reference, fresh)
    if stated.get("vocab_size", 0) is None:
        stated = {key: value for key, value in stated.items() if key != "vocab_size"}
    known = {key: value for key, value in asdict(source).items() if key not in _NOT_TAKEN}
    filled = json.loads(json.dumps(known)) | stated
    try:
        model = TypeAdapter(ModelConfig).validate_json(json.dumps(filled))
    except ValidationError:
        return {**tree, "model": filled}
    _refuse_contradictions(reference, source, model)
    return {**tree, "model": filled}


def _model_of(tree: Mapping[str, Any], reference: str, fresh: bool) -> ModelConfig:
    from cluster.initial_weights import find_initial_weights

    begun = _model_of_begun(tree, reference)
    if begun is not None and not fresh:
        return begun
    try:
        return find_initial_weights(from_root(reference)).model
    except (ClusterError, ModelError, OSError) as error:
        if begun is not None:
            return begun
        told = str(error)
        raise ConfigError(told if told.startswith("initialize_from") else f"initialize_from: {told}") from error


def _model_of_begun(tree: Mapping[str, Any], reference: str) -> ModelConfig | None:
    """The model of the run itself, where it has begun and from there."""
    name, storage = tree.get("name"), tree.get("storage", RunConfig.storage)
    if not isinstance(name, str) or not isinstance(storage, str):
        return None
    try:
        own = parse_yaml((storage_path(storage) / name / "config.yaml").read_text(encoding="utf-8"))
        if isinstance(own, dict) and own.get("initialize_from") == from_root(reference):
            return TypeAdapter(ModelConfig).validate_json(json.dumps(own["model"]))
    except (OSError, UnicodeDecodeError, ClusterError, ConfigError, KeyError, ValidationError):
        pass  # what is wrong with the run or its storage is said where that is opened
    return None


def _refuse_contradictions(reference: str, source: ModelConfig, model: ModelConfig) -> None:
    from cluster.initial_weights import told_contradictions

    if listed := told_contradictions(source, model):
        raise ConfigError(
            f"initialize_from is {reference}, which decides the model, and the configuration states another: {listed}. "
            "Leave these keys out, so that they are taken from there, or begin with random weights by leaving out "
            "initialize_from."
        )


__all__ = ["with_initialization"]
