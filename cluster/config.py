"""What a user may say about a run: training, ZeRO, resources, checkpoints, evaluation, tracking. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.config import DataConfig
from llm.config import ModelConfig, OptimizerConfig, ScheduleConfig

STRICT = {"strict": True, "extra": "forbid", "use_attribute_docstrings": True}
_STAGES_OF_OPTION = {
    "offload_optimizer": (1, 2, 3),
    "offload_parameters": (3,),
    "reduce_bucket_elements": (1, 2, 3),
    "allgather_bucket_elements": (1, 2),
    "prefetch_bucket_elements": (3,),
    "parameter_persistence_threshold_elements": (3,),
    "overlap_communication": (1, 2, 3),
    "hpz_partition_size": (3,),
}
"""The ZeRO stages at which DeepSpeed reads each option."""
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
    activation_checkpointing: Literal["off", "full"] = "off"
    """`full` keeps only each decoder layer's input for the backward pass and computes the layer a second time there:
    less memory for about a third more arithmetic, never another result."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "global_batch_size", "micro_batch_size", "log_every_steps"):
            _require_at_least_one(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """DeepSpeed ZeRO (Rajbhandari et al., arXiv:1910.02054)."""

    __pydantic_config__ = STRICT

    stage: Literal[0, 1, 2, 3] = 2
    """What is partitioned over workers: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """`cpu` keeps masters and moments in the host's memory and updates them there; GPU workers, stages 1 to 3."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """`cpu` keeps each worker's part of the parameters in the host's memory; GPU workers, stage 3."""
    reduce_bucket_elements: int | None = None
    """Gradient elements that are reduced at a time; bounds a buffer. Null: DeepSpeed's 500 million; stages 1 to 3."""
    allgather_bucket_elements: int | None = None
    """Parameter elements that are gathered at a time after an update. Null: DeepSpeed's 500 million; stages 1, 2."""
    prefetch_bucket_elements: int | None = None
    """Parameter elements that are gathered ahead of their use, 0 for none. Null: DeepSpeed's 50 million; stage 3."""
    parameter_persistence_threshold_elements: int | None = None
    """Parameters of up to this many elements stay whole on every worker. Null: DeepSpeed's 100 thousand; stage 3."""
    overlap_communication: bool | None = None
    """Send gradients, at stage 3 parameters too, while the GPU computes. Null: DeepSpeed's choice, on at stage 3."""
    hpz_partition_size: int | None = None
    """Workers that share a second copy of the parameters for the backward pass, as a rule those of one node (ZeRO++,
    arXiv:2306.10209); divides the workers. Null: no second copy; GPU workers, stage 3."""

    def __post_init__(self) -> None:
        for name, stages in _STAGES_OF_OPTION.items():
            value = getattr(self, name)
            if value not in (None, "none") and self.stage not in stages:
                raise ValueError(
                    f"{name} is {value!r} at zero.stage {self.stage}, which has no use for it: it belongs to "
                    f"{'stage' if len(stages) == 1 else 'stages'} {', '.join(map(str, stages))}. "
                    f"Leave {name} out, or change the stage."
                )
        for name, least in (
            ("reduce_bucket_elements", 1),
            ("allgather_bucket_elements", 1),
            ("prefetch_bucket_elements", 0),
            ("parameter_persistence_threshold_elements", 0),
            ("hpz_partition_size", 2),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, and must be at least {least}, or null for the default.")


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What the run takes from the cluster."""

    __pydantic_config__ = STRICT

    workers: int = 2
    """Training processes, one rank each."""
    cpus_per_worker: int = 1
    """CPU cores, and threads of arithmetic, of one worker."""
    gpus_per_worker: Literal["auto"] | int = "auto"
    """GPUs of one worker: 0 or 1. `auto` takes 1 where the cluster has any."""
    max_failures: int = 3
    """Times that lost or failed workers are replaced without a new checkpoint in between; -1: without limit."""

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
    """Perplexity on the held-out documents, and text samples, in the course of training."""

    __pydantic_config__ = STRICT

    every_steps: int | None = 100
    """Steps between evaluations; one more is made at the end. Null: never."""
    max_sequences: int | None = None
    """Sequences per dataset, from the start of the validation split; null means all."""
    prompts: tuple[str, ...] = ("",)
    """Texts that the model continues at each evaluation, in samples.jsonl; the empty one has it begin a document."""
    sample_tokens: int = 64
    """Tokens that it writes for each prompt at most, one forward pass on every worker each; 0: no samples."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "max_sequences"):
            if getattr(self, name) is not None:
                _require_at_least_one(name, getattr(self, name))
        if self.sample_tokens < 0:
            raise ValueError(f"sample_tokens is {self.sample_tokens}: it is a count, or 0 for no samples.")
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError(
                f"prompts are {list(self.prompts)}: one of them twice would give one text. Name each once."
            )
        for prompt in self.prompts:
            if any("\ud800" <= letter <= "\udfff" for letter in prompt):
                raise ValueError(f"prompts hold {prompt!r}, which has half a UTF-16 pair and is no text. Remove it.")


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
    tags: tuple[str, ...] = ()
    """Words to find the run by, of 1 to 64 characters each."""
    notes: str | None = None
    """What the run is about, for its page."""

    def __post_init__(self) -> None:
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"tags hold {tag!r}: a tag has 1 to 64 characters. Shorten it; notes take long texts.")


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
