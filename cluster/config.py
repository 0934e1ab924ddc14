"""What a user may say about a run: training, ZeRO, resources, checkpoints, evaluation, tracking. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.config import DataConfig
from llm.config import ModelConfig, OptimizerConfig, ScheduleConfig

STRICT = {"strict": True, "extra": "forbid", "use_attribute_docstrings": True}
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in what portions."""

    __pydantic_config__ = STRICT

    max_steps: int = 400
    """Optimizer steps."""
    global_batch_size: int = 32
    """Sequences in one optimizer step, over all workers."""
    micro_batch_size: int = 8
    """Sequences that one worker holds at a time; changes memory and speed, never the result."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of forward and backward; masters and moments are fp32 always. `auto` is bf16 on GPUs that have it."""
    log_every_steps: int = 10
    """Steps between lines in metrics.jsonl; the first and the last step are always logged."""
    deterministic: bool = False
    """On GPUs, use deterministic kernels, so that a resumed run is equal bit for bit. CPUs are always deterministic."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "global_batch_size", "micro_batch_size", "log_every_steps"):
            _require_at_least_one(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """DeepSpeed ZeRO (Rajbhandari et al., arXiv:1910.02054)."""

    __pydantic_config__ = STRICT

    stage: Literal[0, 1, 2, 3] = 2
    """What is partitioned over workers: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What the run takes from the cluster."""

    __pydantic_config__ = STRICT

    workers: int = 2
    """Training processes, one rank each."""
    cpus_per_worker: int = 1
    """CPU cores, and threads of arithmetic, of one worker."""
    gpus_per_worker: Literal["auto"] | int = "auto"
    """GPUs of one worker: 0 or 1. `auto` takes 1 where the cluster has one for every worker."""
    max_failures: int = 3
    """Times that lost or failed workers are replaced before the run gives up; -1 means without limit."""

    def __post_init__(self) -> None:
        _require_at_least_one("workers", self.workers)
        _require_at_least_one("cpus_per_worker", self.cpus_per_worker)
        if self.gpus_per_worker not in ("auto", 0, 1):
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker}: a worker drives 0 or 1 GPU, or `auto`.")
        if self.max_failures < -1:
            raise ValueError(f"max_failures is {self.max_failures}: it is a count, or -1 for no limit.")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are taken and how many stay."""

    __pydantic_config__ = STRICT

    every_steps: int = 100
    """Steps between checkpoints; one more is taken at the end."""
    keep_last: int = 3
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        _require_at_least_one("every_steps", self.every_steps)
        _require_at_least_one("keep_last", self.keep_last)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Perplexity on the held-out documents in the course of training."""

    __pydantic_config__ = STRICT

    every_steps: int | None = 100
    """Steps between evaluations; one more is made at the end. Null: never."""
    max_sequences: int | None = None
    """Sequences per dataset, from the start of the validation split; null means all."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "max_sequences"):
            if getattr(self, name) is not None:
                _require_at_least_one(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases."""

    __pydantic_config__ = STRICT

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto` is online where an API key is found and offline otherwise."""
    project: str = "longhaul"
    """Project that the run appears in."""
    entity: str | None = None
    """Team or user; null takes the key's default."""
    group: str | None = None
    """Runs shown together."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: everything that its result depends on, and where it lives."""

    __pydantic_config__ = STRICT

    name: str
    """Name of the run; its directory is storage/name."""
    task: Literal["pretrain"] = "pretrain"
    """What is learned."""
    storage: str = "runs"
    """Directory that all nodes see."""
    seed: int = 1234
    """Key of the initial weights and of the sample order."""
    data: DataConfig
    """Training data and its order."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the model."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length and batch sizes."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Update rule."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over steps."""
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    """Partitioning of the training state."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers and what each one gets."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation during training."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Tracking."""

    def __post_init__(self) -> None:
        if not _RUN_NAME.fullmatch(self.name):
            raise ValueError(
                f"name is {self.name!r}: it becomes a directory, so it takes letters, digits, '.', '_' and '-', "
                "begins with a letter or digit and has at most 128 of them."
            )
        if "://" in self.storage:
            raise ValueError(
                f"storage is {self.storage!r}: object stores are not supported yet. "
                "Name a directory that every node sees (NFS, Lustre, a mounted bucket)."
            )
        if self.resources.workers > self.train.global_batch_size:
            raise ValueError(
                f"resources.workers is {self.resources.workers} and train.global_batch_size "
                f"{self.train.global_batch_size}: a worker without a sequence would idle. "
                "Lower the workers or raise the batch."
            )


def _require_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}, and must be at least 1.")
