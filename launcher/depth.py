"""The dial `depth`: what it decides of a configuration, filled in where nothing is stated."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_pipeline.batch_sizes import BatchSizes, BatchSizeStage
from data_pipeline.config import DataConfig
from launcher.errors import ConfigError
from llm.config import ModelConfig
from llm.scaling import (
    LARGEST_DEPTH,
    SHAPE_FIELDS,
    batch_sequences,
    compute_optimal_tokens,
    model_shape,
    peak_learning_rate,
    scaling_parameters,
)

_NULL_HAS_A_MEANING = ("num_key_value_heads", "head_dim")


def with_depth(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill in what follows from `depth`, so that the configuration of a run holds numbers.

    What the tree states stays, and the rest adapts to it: the steps to the batch, the learning rate to both. Filled in
    once, everything is stated, so that a run's own config.yaml comes back as it is.

    Args:
        tree: Of a run, not validated yet. What is not allowed in it is left to the validation.

    Raises:
        ConfigError: No rule is known for the learning rate.
    """
    depth: Any = tree.get("depth")
    sections = [tree.get(name, {}) for name in ("data", "model", "train", "optimizer")]
    if not _is_count(depth) or depth > LARGEST_DEPTH or not all(isinstance(section, dict) for section in sections):
        return tree
    data, model, train, optimizer = sections
    stated = {name: model[name] for name in SHAPE_FIELDS if name in model}
    if not all(_is_count(value) or (value is None and name in _NULL_HAS_A_MEANING) for name, value in stated.items()):
        return tree
    model = {**model, **model_shape(depth, stated)}
    train, tokens = _with_length(train, model, data.get("seq_len", DataConfig.seq_len))
    if tokens is not None and "learning_rate" not in optimizer:
        _require_adamw_rates(depth, optimizer)
        optimizer = {**optimizer, "learning_rate": peak_learning_rate(*tokens)}
    return {**tree, "model": model, "train": train, "optimizer": optimizer}


def _with_length(
    train: dict[str, Any], model: dict[str, Any], seq_len: Any
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Batch size and steps; then parameters and tokens, None where something else is wrong."""
    stated = [train[name] for name in ("global_batch_size", "max_steps") if name in train]
    try:
        known = {**model, "vocab_size": model.get("vocab_size") or 1}  # of any size: embeddings are not counted
        shape = TypeAdapter(ModelConfig).validate_json(json.dumps(known))
        warmup = TypeAdapter(tuple[BatchSizeStage, ...]).validate_json(json.dumps(train.get("batch_size_warmup", [])))
    except ValidationError:
        return train, None
    if not _is_count(seq_len) or not all(_is_count(value) for value in stated):
        return train, None
    parameters = scaling_parameters(shape)
    wanted = compute_optimal_tokens(parameters)
    size = train.get("global_batch_size", batch_sequences(wanted, seq_len))
    try:
        sizes = BatchSizes(size, warmup)
    except ValueError:
        return {**train, "global_batch_size": size}, None
    steps = train.get("max_steps", max(1, sizes.steps_within(round(wanted / seq_len))))
    return {**train, "global_batch_size": size, "max_steps": steps}, (parameters, sizes.through(steps) * seq_len)


def _require_adamw_rates(depth: int, optimizer: dict[str, Any]) -> None:
    name, adjustment = optimizer.get("name", "adamw"), optimizer.get("learning_rate_adjustment")
    if name == "sgd" or (name == "muon" and adjustment == "original"):
        told = "sgd" if name == "sgd" else "muon with learning_rate_adjustment original"
        raise ConfigError(
            f"depth is {depth}, optimizer.name {told} and optimizer.learning_rate is not stated: the rule that gives "
            "a rate for a depth was measured with AdamW's. State optimizer.learning_rate, or take adamw."
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


__all__ = ["with_depth"]
