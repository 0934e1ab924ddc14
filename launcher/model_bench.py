"""Speed and memory of training steps on one device, without Ray: what `bench model` measures and prints."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cluster.attempt_record import peak_memory_bytes
from cluster.config import RunConfig
from cluster.engines.builders import build_model
from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import MicroBatch
from cluster.engines.torch_engine import TorchEngine
from cluster.resolution import resolve_layout
from cluster.topology import Topology, device_name, set_arithmetic
from llm.accounting import count_parameters, vocabulary_size
from llm.dropout import row_keys
from llm.flops import flops_per_token, model_flops_utilization, peak_flops

_PROFILE_ROWS = 15


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Training steps of one length, on one device."""

    seq_len: int
    tokens_per_step: int
    step_seconds: tuple[float, ...]
    """Of each step, forward to update, the warm-up left out."""
    warmup_seconds: float
    """All steps before; compilation is among them."""
    tokens_per_second: float
    """Tokens of a step / median seconds of a step."""
    mfu: float | None
    """(6 N + 12 L d T) * tokens/s / peak; None where the peak is not known."""
    causal_mfu: float | None
    """The same with the half of attention that is needed, 6 L d T."""
    peak_bytes: int
    """Largest memory held."""

    def as_dict(self) -> dict[str, object]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured, the same for all lengths."""

    config: RunConfig
    device: str
    threads: int
    steps: int
    warmup_steps: int
    document_tokens: int
    """Length of each document, where `data.document_mask` is on."""


def describe(setting: Setting) -> dict[str, Any]:
    """Hardware, versions and model, for the head of a table or a JSON document."""
    config = setting.config
    layout, resolved = resolve_layout(config, _topology(setting), None)
    return {
        "device": device_name(setting.device),
        "threads": setting.threads,
        "versions": dict(layout.versions),
        "parameters": count_parameters(config.model).total,
        "vocab_size": vocabulary_size(config.model),
        "precision": layout.precision,
        "attention": layout.attention,
        "compile": config.train.compile,
        "activation_checkpointing": config.train.activation_checkpointing,
        "micro_batch_size": config.train.micro_batch_size,
        "document_tokens": setting.document_tokens if config.data.document_mask else None,
        "resolved": resolved,
        "formula": "MFU = (6 N + 12 L d T) tokens/s / peak",
    }


def measure(setting: Setting, seq_len: int, tell: Callable[[str], None]) -> Measurement:
    """Train on random tokens for some steps.

    Args:
        setting: Model, device and number of steps.
        seq_len: Tokens of a sequence.
        tell: Gets a line about what is being done.
    """
    tell(f"seq {seq_len}: building the model")
    engine, batch, scale = _prepared(setting, seq_len)
    if setting.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for number in range(setting.warmup_steps):
        tell(f"seq {seq_len}: warming up, step {number + 1} of {setting.warmup_steps}")
        _step(engine, batch, scale)
    warmup = time.perf_counter() - started
    seconds = []
    for number in range(setting.steps):
        tell(f"seq {seq_len}: step {number + 1} of {setting.steps}")
        seconds.append(_step(engine, batch, scale))
    tokens = batch.tokens.numel()
    speed = tokens / statistics.median(seconds)
    flops, peak = flops_per_token(setting.config.model, seq_len), peak_flops(device_name(setting.device))
    return Measurement(
        seq_len=seq_len,
        tokens_per_step=tokens,
        step_seconds=tuple(seconds),
        warmup_seconds=warmup,
        tokens_per_second=speed,
        mfu=model_flops_utilization(speed, flops.full, peak),
        causal_mfu=model_flops_utilization(speed, flops.causal, peak),
        peak_bytes=peak_memory_bytes(setting.device),
    )


def profile(setting: Setting, seq_len: int) -> str:
    """Where the time of one training step goes: the operations that take most of it, as a table."""
    engine, batch, scale = _prepared(setting, seq_len)
    for _ in range(setting.warmup_steps):
        _step(engine, batch, scale)
    activities = [torch.profiler.ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if setting.device.startswith("cuda"):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        order = "self_cuda_time_total"
    with torch.profiler.profile(activities=activities) as profiler:
        _step(engine, batch, scale)
    return str(profiler.key_averages().table(sort_by=order, row_limit=_PROFILE_ROWS, max_name_column_width=48))


def _prepared(setting: Setting, seq_len: int) -> tuple[TorchEngine, MicroBatch, torch.Tensor]:
    config, topology = setting.config, _topology(setting)
    set_arithmetic(topology, deterministic=config.train.deterministic)
    layout, _ = resolve_layout(config, topology, None)
    model = build_model(config.model, layout.attention, config.train)
    engine = TorchEngine(model, optimizer=config.optimizer, precision=layout.precision, device=setting.device)
    engine.load(InitialState(config.model, config.seed))
    batch = random_batch(setting, seq_len)
    return engine, batch, torch.tensor(1.0 / batch.tokens.numel(), device=setting.device)


def random_batch(setting: Setting, seq_len: int) -> MicroBatch:
    """The micro-batch of every step: random tokens in documents of one length, and what a training step drops."""
    config = setting.config
    rows = config.train.micro_batch_size
    generator = torch.Generator().manual_seed(config.seed)
    tokens = torch.randint(0, vocabulary_size(config.model), (rows, seq_len + 1), generator=generator)
    keys = row_keys(config.seed, 1, torch.arange(rows)).to(setting.device) if config.model.has_dropout else None
    documents = (torch.arange(seq_len) // setting.document_tokens).to(torch.int32).repeat(rows, 1)
    return MicroBatch(
        tokens=tokens[:, :-1].contiguous().to(setting.device),
        targets=tokens[:, 1:].contiguous().to(setting.device),
        loss_weights=torch.ones(rows, seq_len, device=setting.device),
        document_ids=documents.to(setting.device) if config.data.document_mask else None,
        dropout_keys=keys,
    )


def _step(engine: TorchEngine, batch: MicroBatch, scale: torch.Tensor) -> float:
    """One forward and backward pass and one update; seconds."""
    started = time.perf_counter()
    engine.accumulate(batch, scale)
    engine.update(1e-4).item()  # waits for the device
    return time.perf_counter() - started


def _topology(setting: Setting) -> Topology:
    return Topology(device=setting.device, threads=setting.threads)
