"""What a train line counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.attempt_record import closing_fields, train_fields
from cluster.config import RunConfig, TrainConfig
from cluster.topology import Topology
from cluster.train_loop import Spent, StepReport
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.config import DataConfig
from llm.config import ModelConfig
from llm.head_config import HeadConfig

SEQ_LEN = 10
GROWING = (BatchSizeStage(until_step=3, global_batch_size=2), BatchSizeStage(until_step=5, global_batch_size=4))
MODEL = ModelConfig(vocab_size=100)
CONFIG = RunConfig(name="run", data=DataConfig(dataset="data", seq_len=SEQ_LEN), train=TrainConfig(global_batch_size=8))


def _report(spent: Spent, *, step: int = 4, steps: int = 4, terms: dict[str, list[float]] | None = None) -> StepReport:
    return StepReport(
        step=step,
        loss=1.0,
        gradient_norm=1.0,
        learning_rate=0.1,
        steps=steps,
        spent=spent,
        terms=terms or {},
    )


def _fields(report: StepReport, config: RunConfig = CONFIG, model: ModelConfig = MODEL) -> dict[str, Any]:
    return train_fields(
        report, config, model, Topology(), lambda step: config.train.batch_sizes.through(step) * SEQ_LEN
    )


@pytest.mark.parametrize(
    ("warmup", "step", "steps", "sequences", "since"),
    [((), 6, 4, 48, 32), (GROWING, 2, 2, 4, 4), (GROWING, 6, 4, 22, 2 + 4 + 4 + 8), (GROWING, 7, 1, 30, 8)],
)
def test_train_line_counts_the_tokens_of_the_steps_made(
    warmup: tuple[BatchSizeStage, ...], step: int, steps: int, sequences: int, since: int
) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, batch_size_warmup=warmup))
    fields = _fields(_report(Spent(training=0.5), step=step, steps=steps), config)
    assert fields["train/tokens"] == sequences * SEQ_LEN
    assert fields["speed/tokens_per_second"] == since * SEQ_LEN / 0.5


def test_train_line_has_no_perplexity_when_labels_are_learned() -> None:
    model = replace(MODEL, head=HeadConfig(predicts="class", outputs=2))
    assert "train/perplexity" in _fields(_report(Spent(training=0.5)))
    assert "train/perplexity" not in _fields(_report(Spent(training=0.5)), model=model)


def test_speed_leaves_out_what_torch_compiled_for() -> None:
    fields = _fields(_report(Spent(training=0.5, compilation=40.0)))
    assert fields["speed/tokens_per_second"] == 4 * 8 * SEQ_LEN / 0.5
    assert fields["time/training_seconds"] == 0.5
    assert fields["time/compilation_seconds"] == 40.0


def test_speed_is_null_when_a_clock_that_was_set_leaves_no_time_for_the_steps() -> None:
    fields = _fields(_report(Spent(training=0.0, compilation=6.0)))
    assert (fields["speed/tokens_per_second"], fields["speed/mfu"]) == (None, None)


def test_end_of_an_attempt_says_what_torch_compiled_for_after_the_last_line() -> None:
    assert closing_fields(Spent(checkpoint=1.5, compilation=2.25)) == {
        "time/checkpoint_seconds": 1.5,
        "time/compilation_seconds": 2.25,
    }
