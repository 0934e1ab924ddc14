"""One attempt at a run on one rank: from the process group to the last checkpoint. Knows nothing of Ray.

Every rank runs this; rank 0 also writes the record. The same code serves a Ray worker, a gloo test and a single
process, because what differs comes in: the topology, the engine and the link to the driver.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from cluster.attempt_record import first_event, labels_of, manifest_run, run_facts, train_fields
from cluster.batches import Feeder
from cluster.checkpoint import CheckpointWriter, WriterHooks, clean_leftovers
from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.continuation import load_newest, reject_loaded
from cluster.errors import CheckpointError, RunBusyError
from cluster.evaluation.in_loop import evaluate_datasets
from cluster.evaluation.late import LateEffects, LateEvaluations
from cluster.evaluation.measures import write_measures
from cluster.healer import Healer
from cluster.initial_weights import beginning
from cluster.process_clock import age_seconds
from cluster.record.wandb_mirror import Status, WandbMirror
from cluster.record.writer import RecordWriter
from cluster.resolution import masks_documents, model_of_run, open_plan, resolve_layout
from cluster.run_directory import PUBLISHED_STEP, TOKENIZER_NAME, RunDirectory
from cluster.storage.operations import storage_path
from cluster.storage.retry import retried
from cluster.surroundings import DriverLink, EngineRequest, Surroundings
from cluster.text_samples import TextSampler
from cluster.topology import Topology, set_arithmetic
from cluster.train_loop import Effects, LoopEnd, Rhythm, Spent, Stopwatch, train
from data_pipeline.examples import TrainingExamples, training_data
from data_pipeline.plan import shared_chat_template
from llm.compilation import compilation_seconds
from llm.metrics.intervals import RESAMPLES
from llm.schedule import learning_rate

__all__ = ["AttemptResult", "DriverLink", "EngineRequest", "Surroundings", "run_attempt"]

logger = logging.getLogger(__name__)

_MIRROR_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """How an attempt ended."""

    step: int
    finished: bool
    spent: Spent
    """What its last seconds went into, after its last train line."""
    regroup: bool = False
    """Whether it ended only for other workers to go on."""


def run_attempt(config: RunConfig, topology: Topology, surroundings: Surroundings) -> AttemptResult:
    """Continue a run from its newest good checkpoint, or begin it, and train to the end or to a stop.

    Numbers that go wrong may send the run back to an earlier checkpoint: that begins a new attempt here, with the same
    model and process group.

    Args:
        config: The run; `storage` and dataset paths absolute, the run's directory created.
        topology: Place of this rank; the torch process group exists unless the world is 1.
        surroundings: Engine, link to the driver, tracking.
    """
    workshop = Workshop(config, topology, surroundings)
    try:
        while (result := _Attempt(workshop).run()) is None:
            workshop.phase("going back to an earlier checkpoint")
    finally:
        if workshop.mirror is not None:  # not ended yet where the attempt after it could not begin
            workshop.mirror.wait(_MIRROR_SECONDS)
    return result


class Workshop:
    """What all attempts of one process share: data, model, engine, the exchange between ranks."""

    def __init__(self, config: RunConfig, topology: Topology, surroundings: Surroundings) -> None:
        """Put it together; called on all ranks."""
        self.config = config
        self.topology = topology
        self.around = surroundings
        self.post = surroundings.link.post
        self.directory = storage_path(config.storage) / config.name
        self.attempts = 0
        """Begun in this process so far: more than one after a rollback."""
        self.mirror: WandbMirror | None = None
        """W&B's mirror of the last attempt that was rolled back; it finishes by itself. Rank 0 only."""
        set_arithmetic(topology, deterministic=config.train.deterministic)
        self.collectives = Collectives()

        self.phase("opening the data")
        self.plan = open_plan(config)
        self.model = model_of_run(config, self.plan.datasets[0])
        self.layout, self.resolved = resolve_layout(config, topology, surroundings.zero_stage)

        self.phase("building the model")
        request = EngineRequest(model=self.model, config=config, layout=self.layout, topology=topology)
        self.engine = surroundings.build_engine(request)
        self.sampler = TextSampler(
            config,
            tokenizer_path=self.directory / TOKENIZER_NAME,
            chat_template=shared_chat_template(self.plan.datasets),
            topology=topology,
            collectives=self.collectives,
        )

    def phase(self, text: str) -> None:
        """Tell the person what is being done; from rank 0."""
        if self.topology.is_main:
            self.post({"type": "phase", "text": text})


class _Attempt:
    """The parts of one attempt, in the order in which they come to be."""

    def __init__(self, workshop: Workshop) -> None:
        shop = self._shop = workshop
        shop.attempts += 1
        self._config = config = shop.config
        self._topology = topology = shop.topology
        self._engine, self._plan, self._collectives = shop.engine, shop.plan, shop.collectives
        record = RunDirectory(shop.directory)

        if topology.is_main and not retried(shop.around.still_ours, f"reading the lease of {shop.directory}"):
            raise RunBusyError(
                f"run {shop.directory} was taken over by another driver: this attempt changes nothing any more."
            )
        self._attempt = self._collectives.from_main(record.next_attempt() if topology.is_main else 0)
        shop.phase("loading the state")
        self._origin = load_newest(
            self._engine,
            lambda facts: beginning(
                config,
                shop.model,
                facts,
                topology=topology,
                collectives=self._collectives,
                labels=labels_of(config, self._plan),
            ),
            config=config,
            plan=self._plan,
            topology=topology,
            collectives=self._collectives,
            post=shop.post,
        )
        self._step = self._origin.step
        self._healer = Healer(
            config,
            self._origin,
            plan=self._plan,
            topology=topology,
            collectives=self._collectives,
            post=self._post_event,
        )
        self._record: RecordWriter | None = self._open_record() if topology.is_main else None
        if shop.attempts == 1:
            self._healer.tell_untold()
        self._late = self._open_late_evaluations() if topology.is_main else None
        self._writer = CheckpointWriter(
            shop.directory,
            attempt=self._attempt,
            rank=topology.rank,
            world_size=topology.world_size,
            policy=config.checkpoint,
            hooks=WriterHooks(
                agree=self._collectives.first_error,
                before_publish=lambda: None if self._record is None else self._record.sync(),
                check_ours=self._check_ours,
                on_saved=self._on_saved,
                needed=lambda: () if self._late is None else self._late.kept_steps(),
            ),
        )
        # Attention drops by the place of an element among all pairs of a row's tokens, which its length decides.
        one_length = config.train.compile or config.model.attention_dropout > 0
        self._sequences = training_data(self._plan, one_length=one_length)
        self._feeder = self._make_feeder()

    def run(self) -> AttemptResult | None:
        """Train; None where the run was rolled back and another attempt is to go on."""
        config = self._config
        self._shop.phase(f"training from step {self._step + 1}" if self._step else "training")
        try:
            end = train(
                self._engine,
                self._feeder,
                rhythm=Rhythm(
                    last_step=config.train.max_steps,
                    log_every_steps=config.train.log_every_steps,
                    evaluate_every_steps=None if config.evaluation.beside_training else config.evaluation.every_steps,
                    checkpoint_every_steps=config.checkpoint.every_steps,
                ),
                learning_rate=lambda step: learning_rate(
                    step, config.schedule, config.optimizer.learning_rate, config.train.max_steps
                ),
                collectives=self._collectives,
                effects=Effects(
                    observe=self._shop.around.observe,
                    check_loss=self._check_loss,
                    next_loss=self._writer.next_loss,
                    judge_loss=self._healer.judge_loss,
                    judge_gradients=self._healer.judge_gradients,
                    log=lambda report: self._write_row(
                        "train",
                        report.step,
                        train_fields(report, config, self._shop.model, self._topology, self._tokens_through),
                    ),
                    evaluate=self._evaluate,
                    record_evaluations=self._record_late,
                    save=self._save,
                    stop_requested=self._shop.around.link.stop_requested,
                    regroup_requested=self._shop.around.link.regroup_requested,
                    compilation_seconds=compilation_seconds,
                ),
                device=self._topology.device,
            )
            regroup = self._settle(end)
            if end.ending == "rollback":
                self._healer.roll_back()
        except BaseException as error:
            self._close("failed", error)
            raise
        if end.ending == "rollback":
            self._leave()
            return None
        finished = end.ending == "finished"
        self._close("finished" if finished and not regroup else "stopped")
        return AttemptResult(step=self._step, finished=finished, spent=end.spent, regroup=regroup)

    def _settle(self, end: LoopEnd) -> bool:
        """Wait for what is left to be written and evaluated; whether other workers are to take over."""
        watch = Stopwatch(compilation_seconds)
        if self._writer.awaits_next_loss:
            self._writer.next_loss(self._loss_of_next_batch())
        self._writer.finish(last=end.ending in ("finished", "stopped"))
        watch.lap(end.spent, "checkpoint")
        regroup = end.ending == "regroup" or (end.ending == "finished" and self._wait_for_late())
        watch.lap(end.spent, "evaluation")
        return regroup

    def _open_record(self) -> RecordWriter:
        """Bring the record to where training continues, and say so. Rank 0 only."""
        shop = self._shop
        RunDirectory(shop.directory).update(
            run_facts(
                config=self._config,
                model=shop.model,
                plan=self._plan,
                layout=shop.layout,
                topology=self._topology,
                resolved=shop.resolved,
                initialized_from=self._origin.initialized_from,
            )
        )
        record = RecordWriter(
            shop.directory,
            attempt=self._attempt,
            after_step=self._step,
            clock=shop.around.clock,
            tracking=shop.around.tracking,
            before=shop.mirror,
        )
        for reason in shop.resolved:
            logger.info("%s", reason)
        start_up_seconds = age_seconds() if shop.attempts == 1 else None
        shop.post(first_event(self._origin, shop.layout, self._attempt, start_up_seconds=start_up_seconds))
        for removed in clean_leftovers(shop.directory, self._attempt):
            logger.info("removed %s, which an earlier attempt left unfinished", removed)
        return record

    def _write_row(self, kind: str, step: int, fields: dict[str, Any]) -> None:
        if self._record is not None:
            row = self._record.write_metrics(kind, step, fields)
            last = self._config.train.max_steps
            max_tokens = self._tokens_through(last)
            self._shop.post({"type": kind, "max_steps": last, "max_tokens": max_tokens, **row})

    def _tokens_through(self, step: int) -> int:
        """Tokens of all sequences up to a step."""
        return self._sequences.tokens_through(step, self._origin.decisions.skips)

    def _post_event(self, event: dict[str, Any]) -> None:
        self._shop.post({"type": "event", "attempt": self._attempt, **event})

    def _check_loss(self, step: int, loss: float) -> None:
        reason = self._origin.check_loss(loss, self._shop.layout.precision)
        if reason is not None:
            reject_loaded(self._origin, reason, layout=self._shop.layout, topology=self._topology, post=self._shop.post)

    def _save(self, step: int) -> None:
        run = manifest_run(
            step=step,
            config=self._config,
            plan=self._plan,
            skips=self._healer.decisions.skips,
            healing=self._healer.memory(),
            layout=self._shop.layout,
            wandb_id=self._shop.around.tracking.run_id,
        )
        self._writer.save(step, self._engine.snapshot(self._writer.spare()), run)
        self._step = step

    def _evaluate(self, step: int) -> None:
        for found in evaluate_datasets(
            self._engine,
            self._shop.model,
            self._plan.datasets,
            self._config,
            topology=self._topology,
            collectives=self._collectives,
            resamples=RESAMPLES if step == self._config.train.max_steps else 0,
        ):
            self._write_row("eval", step, found.fields)
            if found.measured is not None:
                write_measures(self._shop.directory, found, step)
        for sample in self._shop.sampler.write(self._engine, step):
            if self._record is not None:
                self._record.write_sample(step, name=sample.label, prompt=sample.prompt, text=sample.text)

    def _open_late_evaluations(self) -> LateEvaluations | None:
        """What is left to evaluate beside the training, where it is evaluated there. Rank 0 only."""
        if not self._config.evaluation.beside_training:
            return None
        record = self._record
        assert record is not None
        return LateEvaluations(
            self._config,
            self._plan.datasets,
            attempt=self._attempt,
            step=self._step,
            effects=LateEffects(
                post=self._shop.post,
                post_event=self._post_event,
                outcomes=self._shop.around.evaluations,
                write_row=lambda step, fields: self._write_row("eval", step, dict(fields)),
                write_sample=lambda step, each: record.write_sample(
                    step, name=each.name, prompt=each.prompt, text=each.text
                ),
            ),
        )

    def _record_late(self) -> None:
        if self._late is not None:
            self._late.take()

    def _wait_for_late(self) -> bool:
        """Wait for evaluations beside the training after its last step; whether other workers are to take over."""
        if self._late is None:
            return False
        link = self._shop.around.link
        self._late.wait(lambda: link.stop_requested() or link.regroup_requested() == "now", self._shop.phase)
        self._writer.apply_retention()
        return bool(self._late.waiting) and not link.stop_requested() and link.regroup_requested() == "now"

    def _make_feeder(self) -> Feeder:
        return Feeder(
            lambda step: self._plan.batch_indices(step, self._origin.decisions.skips),
            self._sequences.read,
            self._sequences.lengths if isinstance(self._sequences, TrainingExamples) else None,
            topology=self._topology,
            micro_batch_size=self._config.train.micro_batch_size,
            one_shape=self._config.train.compile,
            document_mask=masks_documents(self._config.data),
            dropout_seed=self._config.seed if self._shop.model.has_dropout else None,
            first_step=self._step + 1,
            last_step=self._config.train.max_steps,
        )

    def _loss_of_next_batch(self) -> float | None:
        """Loss of the batch after the last step made, by forward passes only; None where the data ends there."""
        total = self._plan.total_sequences
        if total is not None and self._plan.position_after(self._step + 1, self._origin.decisions.skips) > total:
            return None
        batch = self._feeder.batch(self._step + 1)
        loss_sum = sum(self._engine.evaluate(part).loss_sum.double().item() for part in batch.micro_batches)
        whole_loss, whole_weight = self._collectives.sum([loss_sum, batch.weight_sum])
        return whole_loss / (whole_weight or 1.0)

    def _check_ours(self) -> None:
        """Rank 0, before and after a manifest is written: nothing comes from an attempt that was superseded."""
        newest = RunDirectory(self._shop.directory).facts(patient=False)["attempt"]
        if newest != self._attempt or not self._shop.around.still_ours():
            raise CheckpointError(f"another driver or attempt {newest} has taken over from attempt {self._attempt}")

    def _on_saved(self, event: dict[str, Any]) -> None:
        self._post_event(event)
        waiting = {} if self._late is None else self._late.saved(event["step"])
        noted = {PUBLISHED_STEP: event["step"], **waiting}
        if not RunDirectory(self._shop.directory).update_within(self._attempt, noted):
            logger.warning("step %d is not noted in run.json: another attempt has begun", event["step"])

    def _leave(self) -> None:
        """Make way for the next attempt in this process, without waiting for W&B."""
        self._feeder.close()
        self._writer.close()
        if self._record is not None:
            self._shop.mirror = self._record.leave("stopped", self._healer.failure())

    def _close(self, status: Status, error: BaseException | None = None) -> None:
        self._feeder.close()
        self._writer.close()
        if self._record is not None:
            self._record.close(status, error)
