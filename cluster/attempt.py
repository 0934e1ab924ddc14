"""One attempt at a run on one rank: from the process group to the last checkpoint. Knows nothing of Ray.

Every rank runs this; rank 0 also writes the record. The same code serves a Ray worker, a gloo test and a single
process, because what differs comes in: the topology, the engine and the link to the driver.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from cluster.attempt_record import dataset_labels, first_event, manifest_run, run_facts, train_fields
from cluster.batches import Feeder, RankBatch, micro_batch_count
from cluster.checkpoint import CheckpointWriter, clean_leftovers
from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.continuation import load_newest, reject_loaded
from cluster.engine import Engine
from cluster.errors import CheckpointError, RunBusyError
from cluster.evaluation import evaluate
from cluster.initial_state import InitialState
from cluster.record import perplexity
from cluster.record_writer import RecordWriter
from cluster.resolution import resolve_layout, resolve_model
from cluster.run_directory import PUBLISHED_STEP, TOKENIZER_NAME, RunDirectory
from cluster.text_samples import TextSampler
from cluster.topology import Layout, Topology
from cluster.train_loop import Effects, Rhythm, train
from cluster.wandb_mirror import Status, TrackingSettings
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan
from data_pipeline.sequences import TrainingSequences, ValidationSequences
from llm.config import ModelConfig
from llm.schedule import learning_rate

logger = logging.getLogger(__name__)


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
    config: RunConfig
    layout: Layout
    topology: Topology

    @property
    def micro_batches(self) -> int:
        """Micro-batches per rank and step."""
        sizes = self.config.train
        return micro_batch_count(sizes.global_batch_size, self.topology.world_size, sizes.micro_batch_size)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What an attempt is given besides its configuration."""

    build_engine: Callable[[EngineRequest], Engine]
    zero_stage: int | None
    """Stage the engine works at; None for plain torch."""
    link: DriverLink
    tracking: TrackingSettings
    observe: Callable[[RankBatch], None] = lambda batch: None
    """Sees every batch of this rank before it is computed."""
    clock: Callable[[], float] = time.time
    """Unix seconds."""
    still_ours: Callable[[], bool] = lambda: True
    """Whether the driver of this attempt still holds the run's lease."""


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """How an attempt ended."""

    step: int
    finished: bool


def run_attempt(config: RunConfig, topology: Topology, surroundings: Surroundings) -> AttemptResult:
    """Continue a run from its newest good checkpoint, or begin it, and train to the end or to a stop.

    Args:
        config: The run; `storage` and dataset paths absolute, the run's directory created.
        topology: Place of this rank; the torch process group exists unless the world is 1.
        surroundings: Engine, link to the driver, tracking.
    """
    return _Attempt(config, topology, surroundings).run()


class _Attempt:
    """The parts of one attempt, in the order in which they come to be."""

    def __init__(self, config: RunConfig, topology: Topology, surroundings: Surroundings) -> None:
        self._config = config
        self._topology = topology
        self._around = surroundings
        self._post = surroundings.link.post
        self._directory = Path(config.storage) / config.name
        _set_arithmetic(config, topology)
        self._collectives = Collectives()

        self._phase("opening the data")
        datasets = [Dataset.open(entry.path) for entry in config.data.entries]
        batch_size = config.train.global_batch_size
        self._plan = DataPlan(datasets, config.data, seed=config.seed, global_batch_size=batch_size)
        self._model = resolve_model(config.model, datasets[0].vocab_size)
        self._layout, self._resolved = resolve_layout(config, topology, surroundings.zero_stage)

        self._phase("building the model")
        request = EngineRequest(model=self._model, config=config, layout=self._layout, topology=topology)
        self._engine = surroundings.build_engine(request)

        if topology.is_main and not surroundings.still_ours():
            raise RunBusyError(
                f"run {self._directory} was taken over by another driver: this attempt changes nothing any more."
            )
        self._attempt = self._collectives.from_main(
            RunDirectory(self._directory).next_attempt() if topology.is_main else 0
        )
        self._phase("loading the state")
        self._origin = load_newest(
            self._engine,
            InitialState(self._model, config.seed),
            config=config,
            plan=self._plan,
            topology=topology,
            collectives=self._collectives,
            post=self._post,
        )
        self._step = self._origin.step
        self._skips = self._origin.skips

        self._sampler = TextSampler(
            config,
            layers=self._model.num_hidden_layers,
            tokenizer_path=self._directory / TOKENIZER_NAME,
            topology=topology,
            collectives=self._collectives,
        )
        self._record: RecordWriter | None = self._open_record() if topology.is_main else None
        self._writer = CheckpointWriter(
            self._directory,
            attempt=self._attempt,
            rank=topology.rank,
            world_size=topology.world_size,
            keep_last=config.checkpoint.keep_last,
            agree=self._collectives.first_error,
            before_publish=self._before_publish,
            on_saved=self._on_saved,
        )
        self._feeder = self._make_feeder()

    def run(self) -> AttemptResult:
        config = self._config
        self._phase(f"training from step {self._step + 1}" if self._step else "training")
        try:
            finished = train(
                self._engine,
                self._feeder,
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
                effects=Effects(
                    observe=self._around.observe,
                    check_loss=self._check_loss,
                    next_loss=self._writer.next_loss,
                    log=lambda report: self._write_row(
                        "train", report.step, train_fields(report, config, self._model, self._topology)
                    ),
                    evaluate=self._evaluate,
                    save=self._save,
                    stop_requested=self._around.link.stop_requested,
                ),
                device=self._topology.device,
            )
            if self._writer.awaits_next_loss:
                self._writer.next_loss(self._loss_of_next_batch())
            self._writer.finish()
        except BaseException as error:
            self._close("failed", error)
            raise
        self._close("finished" if finished else "stopped")
        return AttemptResult(step=self._step, finished=finished)

    def _open_record(self) -> RecordWriter:
        """Bring the record to where training continues, and say so. Rank 0 only."""
        RunDirectory(self._directory).update(
            run_facts(
                config=self._config,
                model=self._model,
                plan=self._plan,
                layout=self._layout,
                topology=self._topology,
                resolved=self._resolved,
            )
        )
        record = RecordWriter(
            self._directory,
            attempt=self._attempt,
            after_step=self._step,
            clock=self._around.clock,
            tracking=self._around.tracking,
        )
        for reason in self._resolved:
            logger.info("%s", reason)
        self._post(first_event(self._origin, self._layout, self._attempt))
        for removed in clean_leftovers(self._directory, self._attempt):
            logger.info("removed %s, which an earlier attempt left unfinished", removed)
        return record

    def _write_row(self, kind: str, step: int, fields: dict[str, Any]) -> None:
        if self._record is not None:
            row = self._record.write_metrics(kind, step, fields)
            self._post({"type": kind, "max_steps": self._config.train.max_steps, **row})

    def _check_loss(self, step: int, loss: float) -> None:
        reason = self._origin.check_loss(loss, self._layout.precision)
        if reason is not None:
            reject_loaded(self._origin, reason, layout=self._layout, topology=self._topology, post=self._post)

    def _save(self, step: int) -> None:
        run = manifest_run(
            step=step,
            config=self._config,
            plan=self._plan,
            skips=self._skips,
            layout=self._layout,
            wandb_id=self._around.tracking.run_id,
        )
        self._writer.save(step, self._engine.snapshot(), run)
        self._step = step

    def _evaluate(self, step: int) -> None:
        data = self._config.data
        for dataset, label in zip(self._plan.datasets, dataset_labels(self._plan.datasets), strict=True):
            sequences = ValidationSequences(dataset, data.seq_len, data.document_mask)
            if len(sequences) == 0:
                continue
            loss = evaluate(
                self._engine,
                sequences,
                topology=self._topology,
                collectives=self._collectives,
                micro_batch_size=self._config.train.micro_batch_size,
                document_mask=data.document_mask,
                max_sequences=self._config.evaluation.max_sequences,
            )
            if loss is not None:
                fields = {"name": label, "eval/loss": loss, "eval/perplexity": perplexity(loss)}
                self._write_row("eval", step, fields)
        for sample in self._sampler.write(self._engine, step):
            if self._record is not None:
                self._record.write_sample(step, name=sample.label, prompt=sample.prompt, text=sample.text)

    def _make_feeder(self) -> Feeder:
        return Feeder(
            lambda step: self._plan.batch_indices(step, self._skips),
            TrainingSequences(self._plan).read,
            topology=self._topology,
            micro_batch_size=self._config.train.micro_batch_size,
            document_mask=self._config.data.document_mask,
            first_step=self._step + 1,
            last_step=self._config.train.max_steps,
        )

    def _loss_of_next_batch(self) -> float | None:
        """Loss of the batch after the last step made, by forward passes only; None where the data ends there."""
        total = self._plan.total_sequences
        if total is not None and self._plan.position_after(self._step + 1, self._skips) > total:
            return None
        batch = self._feeder.batch(self._step + 1)
        loss_sum = sum(self._engine.evaluate(part).loss_sum.double().item() for part in batch.micro_batches)
        whole_loss, whole_weight = self._collectives.sum([loss_sum, batch.weight_sum])
        return whole_loss / max(whole_weight, 1.0)

    def _before_publish(self) -> None:
        """Rank 0, before a manifest is written: its metrics first, and nothing from an attempt that was superseded."""
        newest = RunDirectory(self._directory).facts()["attempt"]
        if newest != self._attempt or not self._around.still_ours():
            raise CheckpointError(f"another driver or attempt {newest} has taken over from attempt {self._attempt}")
        if self._record is not None:
            self._record.sync()

    def _on_saved(self, event: dict[str, Any]) -> None:
        RunDirectory(self._directory).update({PUBLISHED_STEP: event["step"]})
        self._post({"type": "event", "attempt": self._attempt, **event})

    def _close(self, status: Status, error: BaseException | None = None) -> None:
        self._feeder.close()
        self._writer.close()
        if self._record is not None:
            self._record.close(status, error)

    def _phase(self, text: str) -> None:
        if self._topology.is_main:
            self._post({"type": "phase", "text": text})


def _set_arithmetic(config: RunConfig, topology: Topology) -> None:
    torch.set_num_threads(topology.threads)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
