"""Facts in words: what a run records under technical names, as a reader says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from launcher.report.json_facts import whole
from launcher.report.units import byte_size, duration, moment, plural

LAYOUT_ORDER = ("world_size", "zero_stage", "precision", "device", "micro_batch_size", "threads", "attention")
"""What a run ran on, the same order wherever it is told."""

_NAMES = {
    "attempt": "attempts",
    "bytes": "size",
    "cuda": "CUDA",
    "dataset_tokens": "whole dataset",
    "deepspeed": "DeepSpeed",
    "fingerprint": "fingerprint",
    "global_batch_size": "global batch",
    "id": "identity",
    "max_epochs": "epochs at most",
    "micro_batch_size": "micro-batch",
    "moe_intermediate_size": "width of an expert",
    "not_yet_used_tokens": "not yet used",
    "num_experts": "experts",
    "num_experts_per_tok": "experts of a token",
    "numpy": "NumPy",
    "order_version": "version of the order",
    "published_step": "newest checkpoint, step",
    "python": "Python",
    "ray": "Ray",
    "rollbacks": "rollback",
    "router_aux_loss_coef": "weight of the routers' balance",
    "router_z_loss_coef": "weight of the routers' z-loss",
    "schema_version": "version of the record",
    "seconds": "for",
    "seq_len": "sequence length",
    "skips": "sequences left out",
    "tail_tokens": "tail, too short for a sequence",
    "time/checkpoint_seconds": "saving at the end",
    "time/compilation_seconds": "compiling at the end",
    "time/data_wait_seconds": "waiting for data at the end",
    "time/evaluation_seconds": "evaluation at the end",
    "time/training_seconds": "training at the end",
    "tokenizer": "tokenizer",
    "torch": "PyTorch",
    "transformers": "Transformers",
    "vocab_size": "vocabulary",
    "wandb": "Weights & Biases",
    "wandb_id": "Weights & Biases ID",
    "withheld": "steps without update",
    "world_size": "workers",
    "z_loss_coefficient": "weight of the z-loss",
    "zero_stage": "ZeRO stage",
}
_WORDS = {
    "cpu": "CPU",
    "cpus": "CPUs",
    "gpu": "GPU",
    "gpus": "GPUs",
    "id": "ID",
    "mfu": "MFU",
    "rng": "RNG",
    "url": "URL",
    "zero": "ZeRO",
}
_SEQUENCES = ("global_batch_size", "micro_batch_size")
_COUNTED = ("tokens", "sequences", "documents", "steps", "blocks", "parameters")
_IDENTITIES = ("seed", "port", "pid", "id", "year", "schema_version", "rank")  # names written in digits, not amounts
_TOPOLOGY_KEYS = ("topology", "layout")  # a layout is a topology with what else bit-equality depends on
_COUNTED_IN_LAYOUT = {"world_size": "worker", "threads": "thread"}
_NUMBERED_IN_LAYOUT = {"zero_stage": "ZeRO", "micro_batch_size": "micro-batch"}
_LONGEST_VALUE = 400  # characters; a traceback belongs in postmortem.md


def label(key: str) -> str:
    """A dotted key as words; a unit that `fact` writes behind the figure is not said twice."""
    return " ".join(_part(part) for part in key.split(".") if part)


def heading(key: str) -> str:
    """A key as words that begin a line."""
    words = label(key)
    return words[:1].upper() + words[1:]


def _part(part: str) -> str:
    if part in _NAMES:
        return _NAMES[part]
    for unit in ("_unix_seconds", "_seconds", "_bytes", *(f"_{noun}" for noun in _COUNTED)):
        if part.endswith(unit):
            part = part.removesuffix(unit)
            break
    return " ".join(_WORDS.get(word, word) for word in part.split("_"))


def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested facts as (dotted key, value)."""
    rows: list[tuple[str, Any]] = []
    for key, value in facts.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(place): item for place, item in enumerate(value, start=1)}
        if isinstance(value, dict) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def fact(key: str, value: Any) -> str:
    """A fact of unknown meaning, with the unit that its name carries."""
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _figure(key.rpartition(".")[2], value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(str(item) for item in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} …"


def _figure(name: str, value: int | float) -> str:
    if name.endswith("unix_seconds"):
        return moment(value)
    if name.endswith("bytes"):
        return byte_size(value)
    if name.endswith("seconds"):
        return duration(value)
    number = f"{value:.6g}" if isinstance(value, float) else str(value) if name in _IDENTITIES else f"{value:,}"
    unit = next((noun for noun in _COUNTED if name.endswith(f"_{noun}")), "")
    if name in _SEQUENCES:
        unit = "sequences"
    return f"{number} {'tokens' if name == 'seq_len' else unit}".rstrip()


def topology_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The topology among facts, whichever name it has; empty where there is none."""
    return next((facts[key] for key in _TOPOLOGY_KEYS if isinstance(facts.get(key), dict)), {})


def without_topology(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The other facts."""
    return {key: value for key, value in facts.items() if key not in _TOPOLOGY_KEYS}


def topology_words(facts: Mapping[str, Any]) -> str:
    """A topology as people say it: `4 workers, ZeRO 2, bf16, cuda`; library versions are told elsewhere."""
    return ", ".join(_topology_part(key, value) for key, value in flat(in_layout_order(facts)))


def weights_words(lineage: Mapping[str, Any]) -> str:
    """Whose weights a run began with: `weights of austen at step 1,200`, `weights of Llama-3.2-1B`."""
    step = whole(lineage.get("step"))
    return f"weights of {lineage.get('name')}" + (f" at step {step:,}" if step is not None else "")


def in_layout_order(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A layout without its library versions, the well-known keys first."""
    known = [key for key in LAYOUT_ORDER if key in facts]
    others = [key for key in facts if key not in LAYOUT_ORDER and key != "versions"]
    return {key: facts[key] for key in (*known, *others)}


def _topology_part(key: str, value: Any) -> str:
    if key in ("precision", "device"):
        return fact(key, value)
    if isinstance(value, int) and not isinstance(value, bool):
        if key in _COUNTED_IN_LAYOUT:
            return plural(value, _COUNTED_IN_LAYOUT[key])
        if key in _NUMBERED_IN_LAYOUT:
            return f"{_NUMBERED_IN_LAYOUT[key]} {value:,}"
    return f"{label(key)} {fact(key, value)}"
