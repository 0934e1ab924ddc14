"""What a user may say about a run: training, ZeRO, resources, checkpoints, evaluation, tracking. Imports no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from cluster.config_rules import STRICT, require_at_least_one
from cluster.errors import StorageError
from cluster.evaluation.config import EvaluationConfig
from cluster.faults.config import FaultsConfig, HealingConfig
from cluster.storage.object_path import ObjectPath
from cluster.tasks import Task, check_task
from data_pipeline.batch_sizes import BatchSizes, BatchSizeStage
from data_pipeline.config import DataConfig
from llm.config import ModelConfig, OptimizerConfig, ScheduleConfig
from llm.scaling import LARGEST_DEPTH

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
    """Sequences in one optimizer step, over all workers; after the warm-up, where there is one."""
    batch_size_warmup: tuple[BatchSizeStage, ...] = ()
    """Smaller batches of the first steps, in growing stages {until_step, global_batch_size}: they learn as much from
    fewer tokens (arXiv:1812.06162). The learning rate stays that of the step."""
    micro_batch_size: int = 8
    """Sequences that one worker holds at a time; changes memory and speed, never the result."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of forward and backward; masters and moments are fp32 always. `auto` is bf16 on GPUs that have it."""
    log_every_steps: int = 10
    """Steps between lines in metrics.jsonl; the first and the last step are always logged."""
    deterministic: bool = False
    """On GPUs, use deterministic kernels, so that a resumed run is equal bit for bit. CPUs are always deterministic."""
    activation_checkpointing: Literal["off", "selective", "full"] = "off"
    """`full` keeps only each decoder layer's input for the backward pass and computes the layer a second time there:
    less memory for about a third more arithmetic. `selective` keeps the results of matrix products and attention too,
    and computes only what is cheap again. Never another result."""
    compile: bool = False
    """Compile the decoder layers with torch.compile: the first step takes a minute longer, the others less."""
    z_loss_coefficient: float = 0.0
    """Weight of the squared logarithm of the logits' partition function, which is added to what is minimised and
    logged apart (PaLM, arXiv:2204.02311, takes 1e-4). 0 for none."""

    label_smoothing: float = 0.0
    """Share of a label's probability that is spread over all classes in what is minimised (arXiv:1512.00567); the loss
    that is logged is without it."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}: it is a share, from 0 to under 1.")
        for name in ("max_steps", "global_batch_size", "micro_batch_size", "log_every_steps"):
            require_at_least_one(name, getattr(self, name))
        if not 0 <= self.z_loss_coefficient < math.inf:
            raise ValueError(
                f"z_loss_coefficient is {self.z_loss_coefficient}: a weight is finite and at least 0. Use 0 for none."
            )
        if self.compile and self.activation_checkpointing == "selective":
            raise ValueError(
                "compile is on and activation_checkpointing selective: inside a compiled layer the compiler decides "
                "what is computed again. Set activation_checkpointing to off or full."
            )
        BatchSizes(self.global_batch_size, self.batch_size_warmup)

    @property
    def batch_sizes(self) -> BatchSizes:
        """Sequences of every optimizer step."""
        return BatchSizes(self.global_batch_size, self.batch_size_warmup)


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

    workers: int | tuple[int, int] = 2
    """Training processes, one rank each. `[least, most]` takes as many as there is room for: the run goes on with the
    nodes that are left, and takes new ones at its next checkpoint."""
    cpus_per_worker: int = 1
    """CPU cores, and threads of arithmetic, of one worker."""
    gpus_per_worker: Literal["auto"] | int = "auto"
    """GPUs of one worker: 0 or 1. `auto` takes 1 where the cluster has any."""

    def __post_init__(self) -> None:
        require_at_least_one("workers", self.min_workers)
        if self.max_workers < self.min_workers:
            raise ValueError(f"workers are {list(self._bounds)}: name the least number first, [least, most].")
        require_at_least_one("cpus_per_worker", self.cpus_per_worker)
        if self.gpus_per_worker not in ("auto", 0, 1):
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker}: a worker drives 0 or 1 GPU, or `auto`.")

    @property
    def min_workers(self) -> int:
        """Workers that the run does not begin or go on without."""
        return self._bounds[0]

    @property
    def max_workers(self) -> int:
        """Workers that the run takes where there is room."""
        return self._bounds[1]

    @property
    def _bounds(self) -> tuple[int, int]:
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are taken and how many stay."""

    __pydantic_config__ = STRICT

    every_steps: int = 100
    """Steps between checkpoints; one more is taken at the end."""
    keep_last: int = 3
    """Newest checkpoints that are kept."""
    keep_every_steps: int | None = None
    """Checkpoints whose step is a multiple of this are kept for good. Null: none."""
    keep_every_minutes: float | None = None
    """The first checkpoint of every so many minutes of the clock is kept for good. Null: none."""
    local_copy: str | None = None
    """Directory on each node's own disk, as an absolute path, for a second copy of the newest checkpoints' files: a
    restart on the same nodes then reads no tensors from the storage. Null: none."""

    def __post_init__(self) -> None:
        require_at_least_one("every_steps", self.every_steps)
        require_at_least_one("keep_last", self.keep_last)
        if self.keep_every_steps is not None:
            require_at_least_one("keep_every_steps", self.keep_every_steps)
            if self.keep_every_steps % self.every_steps:
                raise ValueError(
                    f"keep_every_steps is {self.keep_every_steps} and every_steps {self.every_steps}: few or no "
                    "checkpoints would fall on it. Make it a multiple of every_steps."
                )
        if self.keep_every_minutes is not None and not 0 < self.keep_every_minutes < math.inf:
            raise ValueError(f"keep_every_minutes is {self.keep_every_minutes}, and must be above 0, or null for none.")
        if self.local_copy is not None and not self.local_copy.startswith("/"):
            raise ValueError(
                f"local_copy is {self.local_copy!r}: workers have other current directories. Write an absolute path, "
                "such as /local/longhaul, or null for none."
            )


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
    task: Task = "pretrain"
    """What is learned: `pretrain` every token of the data, `instruction` the answers of conversations alone, the others
    labels of documents or of their words."""
    initialize_from: str | None = None
    """A run, a checkpoint (RUN/checkpoints/step-...) or a Hugging Face directory whose weights the run begins with, its
    optimizer fresh; what is not stated of `model` is taken from there. Null: random weights."""
    storage: str = "runs"
    """Directory that all nodes see, or a place in an object store: s3://bucket/runs, gs://..., az://..."""
    seed: int = 1234
    """Key of the initial weights and of the sample order."""
    depth: int | None = None
    """One dial for the size: the number of decoder layers, from which published rules derive what is not stated of
    width, heads, feed-forward, learning rate, batch size and steps; `config show` shows the outcome. Null: none."""
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
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    """What failures lead to."""
    healing: HealingConfig = field(default_factory=HealingConfig)
    """What is done when numbers go wrong."""
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
        check_task(self)
        if self.depth is not None:
            self._check_depth(self.depth)
        if "://" in self.storage:
            try:
                ObjectPath(self.storage)
            except StorageError as error:
                raise ValueError(str(error)) from error
        smallest = self.train.batch_sizes.smallest
        if self.resources.max_workers > smallest:
            batch = (
                "the smallest of train.batch_size_warmup" if self.train.batch_size_warmup else "train.global_batch_size"
            )
            raise ValueError(
                f"resources.workers is {self.resources.max_workers} and {batch} {smallest}: a worker without a "
                "sequence would idle. Lower the workers or raise the batch."
            )
        limit = self.model.max_position_embeddings
        if limit is not None and self.data.seq_len > limit:
            raise ValueError(
                f"data.seq_len is {self.data.seq_len} and model.max_position_embeddings {limit}: the model knows no "
                "position beyond. Lower the one or raise the other."
            )
        every_steps = self.evaluation.every_steps
        if self.evaluation.beside_training and every_steps is not None and every_steps % self.checkpoint.every_steps:
            raise ValueError(
                f"evaluation.every_steps is {every_steps} and checkpoint.every_steps {self.checkpoint.every_steps}: "
                "evaluation.beside_training measures checkpoints, and some steps would have none. Make "
                "evaluation.every_steps a multiple of checkpoint.every_steps, or turn evaluation.beside_training off."
            )

    @property
    def answers_only(self) -> bool:
        """Whether nothing but answers is a target."""
        return self.task == "instruction"

    def _check_depth(self, depth: int) -> None:
        if not 1 <= depth <= LARGEST_DEPTH:
            raise ValueError(
                f"depth is {depth}: it is a number of decoder layers, from 1 to {LARGEST_DEPTH}, or null for none. "
                "4 is a model for a laptop, 12 has the layers and the width of GPT-2 small."
            )
        layers = self.model.num_hidden_layers
        if layers != depth:
            raise ValueError(
                f"depth is {depth} and model.num_hidden_layers {layers}: both are the number of layers, and stated "
                "numbers are never changed by depth. Leave depth out, or leave out num_hidden_layers and whatever else "
                "depth is to decide."
            )
