"""What a user may say about a run: training, ZeRO, resources, checkpoints, evaluation, tracking. Imports no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from cluster.errors import StorageError
from cluster.storage.object_path import ObjectPath
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

    workers: int | tuple[int, int] = 2
    """Training processes, one rank each. `[least, most]` takes as many as there is room for: the run goes on with the
    nodes that are left, and takes new ones at its next checkpoint."""
    cpus_per_worker: int = 1
    """CPU cores, and threads of arithmetic, of one worker."""
    gpus_per_worker: Literal["auto"] | int = "auto"
    """GPUs of one worker: 0 or 1. `auto` takes 1 where the cluster has any."""

    def __post_init__(self) -> None:
        _require_at_least_one("workers", self.min_workers)
        if self.max_workers < self.min_workers:
            raise ValueError(f"workers are {list(self._bounds)}: name the least number first, [least, most].")
        _require_at_least_one("cpus_per_worker", self.cpus_per_worker)
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
class FaultsConfig:
    """How often workers that failed are replaced, by cause. Each count begins anew with each new checkpoint."""

    __pydantic_config__ = STRICT

    max_preemptions: int = -1
    """Times that the platform takes nodes back with notice; -1: without limit."""
    max_lost_nodes: int = 10
    """Times that nodes vanish without notice; -1: without limit."""
    max_lost_workers: int = 3
    """Times that a worker's process is killed, or ended because it hung, while its node lives; -1: without limit."""
    max_out_of_memory: int = 1
    """Times that a worker that ran out of memory is tried again on the same terms; -1: without limit."""
    max_errors: int = 3
    """Times that a worker's program raises an error; -1: without limit. The same error at the same step a second time
    stops the run whatever the number."""
    on_oom: Literal["stop", "halve_micro_batch"] = "stop"
    """What out of memory leads to. `stop`: `max_out_of_memory` trials, then the run ends and names a micro-batch to
    try. `halve_micro_batch`: half of `train.micro_batch_size` each time, down to 1; the global batch stays. What was
    taken is taken again on the same devices, stage, workers and `train.micro_batch_size` only. Out of memory before the
    first step counts against `max_out_of_memory` alone."""
    hang_timeout_seconds: float | None = 600.0
    """Time in which no rank moves, after which the one that the others wait for is ended and its node avoided; null:
    never. Ten minutes is what NCCL gives a collective; a compilation, or a call that reads no files, may take less."""

    def __post_init__(self) -> None:
        for name in ("max_preemptions", "max_lost_nodes", "max_lost_workers", "max_out_of_memory", "max_errors"):
            if getattr(self, name) < -1:
                raise ValueError(f"{name} is {getattr(self, name)}: it is a count, or -1 for no limit.")
        if self.hang_timeout_seconds is not None and self.hang_timeout_seconds < 20:
            raise ValueError(
                f"hang_timeout_seconds is {self.hang_timeout_seconds:g}, and a rank counts as silent after 10 s "
                "without a heartbeat: 20 or more tells hanging from being slow. Null turns the watch off."
            )


@dataclass(frozen=True, kw_only=True)
class HealingConfig:
    """What is done when numbers go wrong. Every act is an event, and a resumed run repeats it exactly."""

    __pydantic_config__ = STRICT

    non_finite: Literal["warn", "skip", "rollback"] = "rollback"
    """On a loss or gradients that are not finite, whose update is never applied. `skip` goes on with the next batch;
    `rollback` goes back to the last good checkpoint and leaves the batch out of the order; `warn` only says so."""
    loss_spike: Literal["off", "warn", "skip", "rollback"] = "warn"
    """On a loss far above those before it. `skip` leaves out the update, `rollback` does as above."""
    spike_score: float = 8.0
    """Robust z-score that makes a loss a spike: its distance from the median over 1.4826 median absolute deviations."""
    spike_window_steps: int = 128
    """Steps before it that a loss is compared with; nothing is called a spike until half of them are there."""
    rollback_batches: int = 1
    """Batches that a rollback leaves out, the one that gave the alarm being the last of them."""
    max_rollbacks: int = 3
    """Rollbacks for alarms within one checkpoint interval of each other; one more ends the run."""
    skip_sequences: tuple[tuple[int, int], ...] = ()
    """Ranges [first, past the last] of logical sequence indices to leave out from the start, for example those that
    another run's `samples_skipped` events name."""

    def __post_init__(self) -> None:
        _require_at_least_one("rollback_batches", self.rollback_batches)
        if self.spike_window_steps < 4:
            raise ValueError(f"spike_window_steps is {self.spike_window_steps}: a median of fewer than 4 says nothing.")
        if not self.spike_score > 0:
            raise ValueError(f"spike_score is {self.spike_score}, and must be above 0; 6 to 10 are usual.")
        if self.max_rollbacks < 0:
            raise ValueError(f"max_rollbacks is {self.max_rollbacks}: it is a count, 0 for none.")
        for start, stop in self.skip_sequences:
            if not 0 <= start < stop:
                raise ValueError(
                    f"skip_sequences hold [{start}, {stop}]: a range begins at 0 or later and holds an index. "
                    "Write [first, past the last]."
                )


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
        _require_at_least_one("every_steps", self.every_steps)
        _require_at_least_one("keep_last", self.keep_last)
        if self.keep_every_steps is not None:
            _require_at_least_one("keep_every_steps", self.keep_every_steps)
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
    beside_training: bool = False
    """Evaluate in tasks of their own, from the checkpoint of the step, while the workers train on: the lines come
    later, with the step they belong to. A task holds the whole model and takes room that the workers leave free."""
    cpus_per_task: float = 1.0
    """CPU cores that an evaluation beside the training waits for; its threads are as many, at least 1. 0: it waits for
    none and shares those of others."""
    gpus_per_task: Literal["auto"] | int = "auto"
    """GPUs of an evaluation beside the training: 0 or 1. `auto` takes 1 where the workers train on GPUs."""
    max_waiting: int = 4
    """Checkpoints that are kept for their evaluation beside the training where `checkpoint.keep_last` would not keep
    them. Where more wait, evaluations are left out, and an event says which."""
    task_timeout_seconds: float = 1800.0
    """Longest that an evaluation beside the training may compute before it is ended and tried again, and longest wait
    at the end of the training for one of those that are missing."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "max_sequences"):
            if getattr(self, name) is not None:
                _require_at_least_one(name, getattr(self, name))
        self._check_tasks()
        if self.sample_tokens < 0:
            raise ValueError(f"sample_tokens is {self.sample_tokens}: it is a count, or 0 for no samples.")
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError(
                f"prompts are {list(self.prompts)}: one of them twice would give one text. Name each once."
            )
        for prompt in self.prompts:
            if any("\ud800" <= letter <= "\udfff" for letter in prompt):
                raise ValueError(f"prompts hold {prompt!r}, which has half a UTF-16 pair and is no text. Remove it.")

    @property
    def threads_per_task(self) -> int:
        """Threads of arithmetic of an evaluation beside the training."""
        return max(1, int(self.cpus_per_task))

    def _check_tasks(self) -> None:
        """Refuse what an evaluation beside the training cannot be."""
        if self.beside_training and self.every_steps is None:
            raise ValueError(
                "beside_training is on and every_steps is null: nothing would be evaluated. Name the steps between "
                "evaluations, a multiple of checkpoint.every_steps, or leave beside_training out."
            )
        if not 0 <= self.cpus_per_task < math.inf:
            raise ValueError(f"cpus_per_task is {self.cpus_per_task}: it is a number of CPU cores, 0 or more.")
        if self.gpus_per_task not in ("auto", 0, 1):
            raise ValueError(f"gpus_per_task is {self.gpus_per_task}: an evaluation takes 0 or 1 GPU, or `auto`.")
        _require_at_least_one("max_waiting", self.max_waiting)
        if not 0 < self.task_timeout_seconds < math.inf:
            raise ValueError(f"task_timeout_seconds is {self.task_timeout_seconds}, and must be above 0.")


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
    """Directory that all nodes see, or a place in an object store: s3://bucket/runs, gs://..., az://..."""
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
        if "://" in self.storage:
            try:
                ObjectPath(self.storage)
            except StorageError as error:
                raise ValueError(str(error)) from error
        if self.resources.max_workers > self.train.global_batch_size:
            raise ValueError(
                f"resources.workers is {self.resources.max_workers} and train.global_batch_size "
                f"{self.train.global_batch_size}: a worker without a sequence would idle. "
                "Lower the workers or raise the batch."
            )
        every_steps = self.evaluation.every_steps
        if self.evaluation.beside_training and every_steps is not None and every_steps % self.checkpoint.every_steps:
            raise ValueError(
                f"evaluation.every_steps is {every_steps} and checkpoint.every_steps {self.checkpoint.every_steps}: "
                "evaluation.beside_training measures checkpoints, and some steps would have none. Make "
                "evaluation.every_steps a multiple of checkpoint.every_steps, or turn evaluation.beside_training off."
            )


def _require_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}, and must be at least 1.")
