"""One attempt at a run on one rank: from the process group to the last checkpoint. Knows nothing of Ray.

Every rank runs this; rank 0 also writes the record. The same code serves a Ray worker, a gloo test and a single
process, because what differs comes in: the topology, the engine and the link to the driver.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from cluster.batches import Feeder, RankBatch, micro_batch_count
from cluster.checkpoint import (
    CheckpointInfo,
    CheckpointReader,
    CheckpointWriter,
    Manifest,
    clean_leftovers,
    list_checkpoints,
    reject,
    verify,
)
from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.engine import Engine
from cluster.errors import CheckpointError, CheckpointMismatchError
from cluster.evaluation import evaluate
from cluster.initial_state import InitialState
from cluster.record import METRICS_NAME, MetricsLog, perplexity, read_lines
from cluster.resume import check_plan, check_resume
from cluster.run_directory import RunDirectory, config_as_dict
from cluster.topology import Layout, Topology, device_name, library_versions, resolve_precision
from cluster.train_loop import Effects, Rhythm, StepReport, train
from cluster.wandb_mirror import TrackingSettings, WandbMirror
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan
from data_pipeline.sequences import TrainingSequences, ValidationSequences
from data_pipeline.skip_ledger import SkipLedger
from llm.accounting import count_parameters, flops_per_token, model_flops_utilization, peak_flops
from llm.attention import resolve_attention
from llm.config import ModelConfig
from llm.schedule import learning_rate

logger = logging.getLogger(__name__)

LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Resume law: relative difference allowed between the next batch's loss when saved and when loaded."""


class DriverLink(Protocol):
    """The way from a worker to the driver."""

    def post(self, message: dict[str, Any]) -> None:
        """Send a message; never waits."""

    def stop_requested(self) -> bool:
        """Whether the driver wants the run to save and end."""


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What an engine is built from."""

    model: ModelConfig
    attention: str
    config: RunConfig
    layout: Layout
    topology: Topology

    @property
    def micro_batches(self) -> int:
        """Micro-batches per rank and step."""
        train_config = self.config.train
        return micro_batch_count(
            train_config.global_batch_size, self.topology.world_size, train_config.micro_batch_size
        )


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """How an attempt ended."""

    step: int
    finished: bool


def run_attempt(
    config: RunConfig,
    topology: Topology,
    *,
    engine: Callable[[EngineRequest], Engine],
    zero_stage: int | None,
    link: DriverLink,
    tracking: TrackingSettings,
    observe: Callable[[RankBatch], None] = lambda batch: None,
    clock: Callable[[], float] = time.time,
) -> AttemptResult:
    """Continue a run from its newest good checkpoint, or begin it, and train to the end or to a stop.

    Args:
        config: The run; `storage` and dataset paths absolute, the run's directory created.
        topology: Place of this rank; the torch process group exists unless the world is 1.
        engine: Builds the engine.
        zero_stage: Stage it works at; None for plain torch.
        link: Way to the driver.
        tracking: W&B settings; used on rank 0.
        observe: Sees every batch of this rank.
        clock: Unix seconds.
    """
    attempt = _Attempt(config, topology, engine, zero_stage, link, tracking, clock)
    return attempt.run(observe)


class _Attempt:
    """The parts of one attempt, in the order in which they come to be."""

    def __init__(
        self,
        config: RunConfig,
        topology: Topology,
        engine: Callable[[EngineRequest], Engine],
        zero_stage: int | None,
        link: DriverLink,
        tracking: TrackingSettings,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._topology = topology
        self._link = link
        self._tracking = tracking
        self._clock = clock
        self._directory = Path(config.storage) / config.name
        _set_arithmetic(config, topology)
        self._collectives = Collectives()
        self._skips = SkipLedger()

        self._phase("opening the data")
        self._datasets = [Dataset.open(entry.path) for entry in config.data.entries]
        self._plan = DataPlan(
            self._datasets, config.data, seed=config.seed, global_batch_size=config.train.global_batch_size
        )
        self._plan.check_steps(config.train.max_steps)
        self._model_config = resolve_model(config.model, self._datasets[0].manifest.vocab_size)
        self._layout, reasons = resolve_layout(config, topology, zero_stage)
        self._phase("building the model")
        self._engine = engine(
            EngineRequest(
                model=self._model_config,
                attention=self._layout.attention,
                config=config,
                layout=self._layout,
                topology=topology,
            )
        )
        self._reasons = reasons
        self._step = 0
        self._expected_loss: float | None = None
        self._loaded: CheckpointInfo | None = None

    def run(self, observe: Callable[[RankBatch], None]) -> AttemptResult:
        number = self._begin()
        self._load()
        config, is_main = self._config, self._topology.is_main
        record = RunDirectory(self._directory)
        metrics = (
            MetricsLog(self._directory, attempt=number, after_step=self._step, clock=self._clock) if is_main else None
        )
        mirror = self._start_mirror() if is_main else None
        writer = CheckpointWriter(
            self._directory,
            attempt=number,
            rank=self._topology.rank,
            world_size=self._topology.world_size,
            keep_last=config.checkpoint.keep_last,
            before_publish=metrics.sync if metrics else lambda: None,
            on_saved=lambda event: self._link.post({"type": "event", "attempt": number, **event}),
        )
        if is_main:
            record.update(self._facts())
            self._announce(number)
        feeder = self._feeder()

        def write_row(kind: str, step: int, fields: dict[str, Any]) -> None:
            if metrics is not None and mirror is not None:
                row = metrics.write(kind, step, fields)
                mirror.put(row)
                self._link.post({"type": kind, "max_steps": config.train.max_steps, **row})

        def save(step: int) -> None:
            writer.save(step, self._engine.snapshot(), self._manifest_run(step))
            self._step = step

        effects = Effects(
            observe=observe,
            check_loss=self._check_loss,
            next_loss=writer.next_loss,
            log=lambda report: write_row("train", report.step, self._train_fields(report)),
            evaluate=lambda step: self._evaluate(step, write_row),
            save=save,
            stop_requested=self._link.stop_requested,
        )
        self._phase(f"training from step {self._step + 1}" if self._step else "training")
        try:
            finished = train(
                self._engine,
                feeder,
                rhythm=Rhythm(
                    last_step=config.train.max_steps,
                    log_every_steps=config.train.log_every_steps,
                    evaluate_every_steps=config.evaluation.every_steps,
                    checkpoint_every_steps=config.checkpoint.every_steps,
                ),
                learning_rate=lambda step: learning_rate(
                    step, config.schedule, config.optimizer.learning_rate, config.train.max_steps
                ),
                collectives=self._collectives,
                effects=effects,
                device=self._topology.device,
            )
            if writer.awaits_next_loss:
                writer.next_loss(self._loss_of_next_batch(feeder))
        finally:
            feeder.close()
            self._close(writer, metrics, mirror)
        return AttemptResult(step=self._step, finished=finished)

    def _begin(self) -> int:
        """Number this attempt, the same on every rank."""
        number = RunDirectory(self._directory).next_attempt() if self._topology.is_main else 0
        return self._collectives.from_main(number)

    def _load(self) -> None:
        """Set the engine from the newest good checkpoint; damaged ones are rejected, with the reason, one by one."""
        candidates = list_checkpoints(self._directory) if self._topology.is_main else []
        candidates = self._collectives.from_main(candidates)
        for info in reversed(candidates):
            problem = info.problem or self._collectives.first_error(self._damage(info))
            if problem is None:
                self._phase(f"loading the checkpoint of step {info.step}")
                assert info.manifest is not None
                self._check_continuation(info.manifest)
                self._engine.load(CheckpointReader(info.directory, info.manifest))
                self._loaded, self._step = info, info.step
                self._expected_loss = info.manifest.next_batch_loss
                self._skips = SkipLedger.from_json(info.manifest.run["skip_ledger"])
                return
            if self._topology.is_main:
                logger.warning("checkpoint of step %d is not used: %s", info.step, problem)
                self._link.post({"type": "event", "event": "checkpoint_rejected", "step": info.step, "reason": problem})
        if candidates:
            raise CheckpointError(
                f"none of the {len(candidates)} checkpoints of run {self._directory} can be used; the newest: "
                f"{candidates[-1].problem or 'its files are damaged'} Restore one from a copy, or begin anew with --fresh."
            )
        self._engine.load(InitialState(self._model_config, self._config.seed))

    def _damage(self, info: CheckpointInfo) -> str | None:
        """Verify this rank's share of a checkpoint's files; together the ranks verify all of them."""
        assert info.manifest is not None
        try:
            verify(info, info.manifest.files[self._topology.rank :: self._topology.world_size])
        except CheckpointError as error:
            return str(error)
        return None

    def _check_continuation(self, manifest: Manifest) -> None:
        run = manifest.run
        logged = check_resume(run["config"], config_as_dict(self._config), step=manifest.step, run=self._config.name)
        check_plan(run["data_plan"], self._plan.describe(), step=manifest.step, run=self._config.name)
        self._reasons += [f"changed since the checkpoint: {change}" for change in logged]

    def _check_loss(self, step: int, loss: float) -> None:
        if self._expected_loss is None or self._loaded is None or self._loaded.manifest is None:
            return
        saved_precision = self._loaded.manifest.run["layout"]["precision"]
        tolerance = max(LOSS_TOLERANCE[saved_precision], LOSS_TOLERANCE[self._layout.precision])
        difference = abs(loss - self._expected_loss) / abs(self._expected_loss)
        if difference <= tolerance:
            return
        reason = (
            f"the loss of step {step} is {loss:.8g} with the loaded state and was {self._expected_loss:.8g} with the "
            f"saved one: {difference:.2e} apart, more than the {tolerance:.0e} that rounding allows"
        )
        if self._topology.is_main:
            reject(self._loaded, reason)
            self._link.post(
                {"type": "event", "event": "checkpoint_rejected", "step": self._loaded.step, "reason": reason}
            )
        raise CheckpointMismatchError(f"checkpoint {self._loaded.directory} was rejected: {reason}.")

    def _start_mirror(self) -> WandbMirror:
        return WandbMirror(
            self._tracking,
            self._directory / "wandb",
            config=config_as_dict(self._config),
            record=list(read_lines(self._directory / METRICS_NAME)),
            several_datasets=len(self._datasets) > 1,
        )

    def _feeder(self) -> Feeder:
        training = TrainingSequences(self._plan)
        return Feeder(
            lambda step: self._plan.batch_indices(step, self._skips),
            training.read,
            topology=self._topology,
            micro_batch_size=self._config.train.micro_batch_size,
            document_mask=self._config.data.document_mask,
            first_step=self._step + 1,
            last_step=self._config.train.max_steps,
        )

    def _evaluate(self, step: int, write_row: Callable[[str, int, dict[str, Any]], None]) -> None:
        for dataset in self._datasets:
            sequences = ValidationSequences(dataset, self._config.data.seq_len, self._config.data.document_mask)
            if len(sequences) == 0:
                continue
            loss, _ = evaluate(
                self._engine,
                sequences,
                topology=self._topology,
                collectives=self._collectives,
                micro_batch_size=self._config.train.micro_batch_size,
                document_mask=self._config.data.document_mask,
                max_sequences=self._config.evaluation.max_sequences,
            )
            write_row(
                "eval", step, {"name": dataset.manifest.name, "eval/loss": loss, "eval/perplexity": perplexity(loss)}
            )

    def _loss_of_next_batch(self, feeder: Feeder) -> float | None:
        """Loss of the batch after the last step made, by forward passes only; None when the data ends there."""
        total = self._plan.total_sequences
        if total is not None and self._plan.position_after(self._step + 1, self._skips) > total:
            return None
        batch = feeder.batch(self._step + 1)
        loss_sum = sum(self._engine.evaluate(part).loss_sum.double().item() for part in batch.micro_batches)
        whole_loss, whole_weight = self._collectives.sum([loss_sum, batch.weight_sum])
        return whole_loss / max(whole_weight, 1.0)

    def _train_fields(self, report: StepReport) -> dict[str, Any]:
        config = self._config
        tokens_per_step = config.train.global_batch_size * config.data.seq_len
        tokens_per_second = report.steps_per_second * tokens_per_step
        flops = flops_per_token(self._model_config, config.data.seq_len).full
        peak = peak_flops(device_name(self._topology.device)) if self._topology.device.startswith("cuda") else None
        world_peak = peak * self._topology.world_size if peak is not None else None
        return {
            "train/loss": report.loss,
            "train/perplexity": perplexity(report.loss),
            "train/grad_norm": report.gradient_norm,
            "train/learning_rate": report.learning_rate,
            "train/tokens": report.step * tokens_per_step,
            "speed/tokens_per_second": tokens_per_second,
            "speed/mfu": model_flops_utilization(tokens_per_second, flops, world_peak),
            "memory/peak_bytes": peak_memory_bytes(self._topology.device),
        }

    def _manifest_run(self, step: int) -> dict[str, Any]:
        return {
            "data_position": self._plan.position_after(step, self._skips),
            "skip_ledger": self._skips.to_json(),
            "data_plan": self._plan.describe(),
            "data_plan_fingerprint": self._plan.fingerprint,
            "layout": self._layout.as_dict(),
            "config": config_as_dict(self._config),
            "rng": {"seed": self._config.seed, "scheme": "initial values by name, order by position; no other draws"},
            "wandb_id": self._tracking.run_id,
        }

    def _facts(self) -> dict[str, Any]:
        counted = count_parameters(self._model_config)
        return {
            "layout": self._layout.as_dict(),
            "resolved": self._reasons,
            "environment": {**library_versions(), "device": device_name(self._topology.device)},
            "model": {"parameters": counted.total, "vocab_size": self._model_config.vocab_size},
            "data_plan": {"fingerprint": self._plan.fingerprint, **self._plan.describe()},
            "datasets": [
                {"name": d.manifest.name, "fingerprint": d.manifest.fingerprint, "tokenizer": d.manifest.tokenizer_hash}
                for d in self._datasets
            ],
        }

    def _announce(self, number: int) -> None:
        for reason in self._reasons:
            logger.info("%s", reason)
        layout = self._layout.as_dict()
        if self._loaded is None or self._loaded.manifest is None:
            event: dict[str, Any] = {"event": "started", "layout": layout}
        else:
            before = self._loaded.manifest.run["layout"]
            event = {
                "event": "resumed",
                "from_step": self._step,
                "layout_changes": self._layout.differences(before),
                "layout": layout,
            }
        self._link.post({"type": "event", "attempt": number, "step": self._step, **event})
        for removed in clean_leftovers(self._directory, number):
            logger.info("removed %s, which an earlier attempt left unfinished", removed)

    def _close(self, writer: CheckpointWriter, metrics: MetricsLog | None, mirror: WandbMirror | None) -> None:
        try:
            writer.wait()
        finally:
            if metrics is not None:
                metrics.close()
            if mirror is not None:
                mirror.close()

    def _phase(self, text: str) -> None:
        if self._topology.is_main:
            self._link.post({"type": "phase", "text": text})


def resolve_model(model: ModelConfig, vocab_size: int) -> ModelConfig:
    """The model's shape with the tokenizer's size put in.

    Raises:
        CheckpointError: The configuration names another size.
    """
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise CheckpointError(
            f"model.vocab_size is {model.vocab_size}, and the dataset's tokenizer has {vocab_size} pieces: a token "
            "without an embedding cannot be read. Leave model.vocab_size out, or raise it."
        )
    return model if model.vocab_size is not None else replace(model, vocab_size=vocab_size)


def resolve_layout(config: RunConfig, topology: Topology, zero_stage: int | None) -> tuple[Layout, list[str]]:
    """Resolve every `auto` once; the second part says why, for log and record."""
    precision, why_precision = resolve_precision(config.train.precision, topology.device)
    attention, why_attention = resolve_attention(config.model.attention)
    layout = Layout(
        world_size=topology.world_size,
        zero_stage=zero_stage,
        micro_batch_size=config.train.micro_batch_size,
        precision=precision,
        threads=topology.threads,
        device=topology.device.split(":")[0],
        attention=attention,
        versions=library_versions(),
    )
    return layout, [f"precision {precision}: {why_precision}", f"attention {attention}: {why_attention}"]


def peak_memory_bytes(device: str) -> int:
    """Largest memory held so far by rank 0: allocated on the GPU, or resident in the process (ru_maxrss)."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _set_arithmetic(config: RunConfig, topology: Topology) -> None:
    torch.set_num_threads(topology.threads)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
