"""What an attempt writes about itself: metrics lines, the run's part of a manifest, facts, and its first event."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from cluster.branch import BRANCHED_FROM
from cluster.config import RunConfig
from cluster.continuation import Continuation
from cluster.conversation import chat_facts
from cluster.evaluation.in_loop import dataset_labels
from cluster.healing import HEALING
from cluster.initial_weights import INITIALIZED_FROM
from cluster.record.logs import perplexity
from cluster.run_directory import config_as_dict
from cluster.tasks import LABELS, labels_as_dict, learns_labels
from cluster.topology import Layout, Topology, device_name
from cluster.train_loop import Spent, StepReport
from cluster.versions import library_versions
from data_pipeline.plan import DataPlan
from data_pipeline.skip_ledger import SkipLedger
from llm.accounting import count_parameters
from llm.config import ModelConfig
from llm.flops import flops_per_token, model_flops_utilization, peak_flops
from llm.loss import EXPERT_LOAD


def train_fields(
    report: StepReport,
    config: RunConfig,
    model: ModelConfig,
    topology: Topology,
    tokens_through: Callable[[int], int],
) -> dict[str, Any]:
    """Fields of a train line; `tokens_through` gives the tokens of all batches up to a step.

    tokens/s counts the tokens of all workers over the time of the steps, waits for data, compilation, evaluation and
    saving left out; these are in `time/`, in seconds since the line before. It is null where nothing is left of that
    time, which a clock that was set while torch compiled can bring about. MFU is (6 N + 12 L d T) * tokens/s over the
    peak of all GPUs together; null where a peak is not known.
    """
    seq_len, tokens = config.data.seq_len, tokens_through(report.step)
    training = report.spent.training
    tokens_per_second = None
    if training > 0:
        tokens_per_second = (tokens - tokens_through(report.step - report.steps)) / training
    peak = peak_flops(device_name(topology.device)) if topology.device.startswith("cuda") else None
    return {
        "train/loss": report.loss,
        **({"train/perplexity": perplexity(report.loss)} if model.head is None else {}),
        "train/grad_norm": report.gradient_norm,
        "train/learning_rate": report.learning_rate,
        **_term_fields(report.terms, model),
        "train/tokens": tokens,
        "speed/tokens_per_second": tokens_per_second,
        "speed/mfu": None
        if tokens_per_second is None or peak is None
        else model_flops_utilization(
            tokens_per_second, flops_per_token(model, seq_len).full, peak * topology.world_size
        ),
        "memory/peak_bytes": peak_memory_bytes(topology.device),
        **time_fields(report.spent),
    }


def time_fields(spent: Spent) -> dict[str, float]:
    """Seconds by what they were spent on, as a train line has them."""
    return {
        "time/training_seconds": spent.training,
        "time/data_wait_seconds": spent.data_wait,
        "time/checkpoint_seconds": spent.checkpoint,
        "time/evaluation_seconds": spent.evaluation,
        "time/compilation_seconds": spent.compilation,
    }


def closing_fields(spent: Spent) -> dict[str, float]:
    """The same of the seconds after an attempt's last train line, as the event of its end has them; zeros left out.

    To a microsecond, as goodput counts: figures rounded up to more would exceed the time that there was.
    """
    rounded = ((key, round(seconds, 6)) for key, seconds in time_fields(spent).items())
    return {key: seconds for key, seconds in rounded if seconds}


def _term_fields(terms: Mapping[str, list[float]], model: ModelConfig) -> dict[str, float]:
    """Means over targets as they are logged; loads of experts, over all layers, as multiples of the even share."""
    loads = terms.get(EXPERT_LOAD)
    fields = {f"train/{name}": mean for name, (mean, *_) in terms.items() if name != EXPERT_LOAD}
    if loads is not None and model.num_experts is not None:
        even = model.num_experts_per_tok / model.num_experts
        fields |= {"router/largest_load": max(loads) / even, "router/smallest_load": min(loads) / even}
    return fields


def manifest_run(
    *,
    step: int,
    config: RunConfig,
    plan: DataPlan,
    skips: SkipLedger,
    healing: Mapping[str, Any],
    layout: Layout,
    wandb_id: str,
) -> dict[str, Any]:
    """What a run needs, besides its tensors, to go on after `step`."""
    return {
        "data_position": plan.position_after(step, skips),
        "skip_ledger": skips.to_json(),
        HEALING: healing,
        "data_plan": plan.describe(),
        "data_plan_fingerprint": plan.fingerprint,
        **chat_facts(plan),
        "layout": layout.as_dict(),
        "config": config_as_dict(config),
        "rng": {"seed": config.seed, "scheme": "initial values by name, order by position, samples by step"},
        "wandb_id": wandb_id,
        **_labels(config, plan),
    }


def labels_of(config: RunConfig, plan: DataPlan) -> dict[str, Any] | None:
    """What the model's outputs mean, where they are labels."""
    return labels_as_dict(plan.datasets[0].labels) if learns_labels(config.task) else None


def _labels(config: RunConfig, plan: DataPlan) -> dict[str, Any]:
    labels = labels_of(config, plan)
    return {} if labels is None else {LABELS: labels}


def run_facts(
    *,
    config: RunConfig,
    model: ModelConfig,
    plan: DataPlan,
    layout: Layout,
    topology: Topology,
    resolved: list[str],
    initialized_from: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Facts for run.json: all that a view of the run needs besides its logs."""
    return {
        **({INITIALIZED_FROM: initialized_from} if initialized_from is not None else {}),
        "layout": layout.as_dict(),
        "resolved": resolved,
        "environment": {**library_versions(), "device": device_name(topology.device)},
        "config": config_as_dict(config),
        "model": {**asdict(model), "parameters": count_parameters(model).total},
        "data_plan": {"fingerprint": plan.fingerprint, **plan.describe()},
        **_labels(config, plan),
        "datasets": [
            {
                "name": dataset.name,
                "label": label,
                "fingerprint": dataset.fingerprint,
                "tokenizer": dataset.tokenizer_hash,
            }
            for dataset, label in zip(plan.datasets, dataset_labels(plan.datasets), strict=True)
        ],
    }


def first_event(
    continuation: Continuation, layout: Layout, attempt: int, *, start_up_seconds: float | None = None
) -> dict[str, Any]:
    """`started`, with whose weights, or `resumed` with both layouts, and the parent where the state is a parent's.

    Args:
        continuation: What the attempt begins with.
        layout: What it runs on.
        attempt: Its number.
        start_up_seconds: Age of this process, where the attempt is the first one in it.
    """
    common = {"type": "event", "attempt": attempt, "step": continuation.step, "layout": layout.as_dict()}
    if start_up_seconds is not None:
        common["start_up_seconds"] = round(start_up_seconds, 3)
    if continuation.manifest is None:
        lineage = continuation.initialized_from
        return {**common, "event": "started", **({INITIALIZED_FROM: lineage} if lineage is not None else {})}
    parent = continuation.manifest.run.get(BRANCHED_FROM)
    return {
        **common,
        "event": "resumed",
        "from_step": continuation.step,
        **({BRANCHED_FROM: {key: parent[key] for key in ("run", "name", "step")}} if parent else {}),
        "layout_changes": layout.differences(continuation.manifest.run["layout"]),
        "config_changes": list(continuation.changes),
    }


def peak_memory_bytes(device: str) -> int:
    """Largest memory held so far by rank 0: allocated on the GPU, or resident in the process (ru_maxrss)."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
