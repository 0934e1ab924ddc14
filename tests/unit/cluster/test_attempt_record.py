"""What a train line counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.attempt_record import train_fields
from cluster.config import RunConfig, TrainConfig
from cluster.topology import Topology
from cluster.train_loop import Spent, StepReport
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.config import DataConfig
from llm.config import ModelConfig

SEQ_LEN = 10
GROWING = (BatchSizeStage(until_step=3, global_batch_size=2), BatchSizeStage(until_step=5, global_batch_size=4))
CONFIG = RunConfig(name="run", data=DataConfig(dataset="data", seq_len=SEQ_LEN), train=TrainConfig(global_batch_size=8))


@pytest.mark.parametrize(
    ("warmup", "step", "steps", "sequences", "since"),
    [((), 6, 4, 48, 32), (GROWING, 2, 2, 4, 4), (GROWING, 6, 4, 22, 2 + 4 + 4 + 8), (GROWING, 7, 1, 30, 8)],
)
def test_train_line_counts_the_tokens_of_the_steps_made(
    warmup: tuple[BatchSizeStage, ...], step: int, steps: int, sequences: int, since: int
) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, batch_size_warmup=warmup))
    report = StepReport(
        step=step,
        loss=1.0,
        gradient_norm=1.0,
        learning_rate=0.1,
        steps=steps,
        spent=Spent(training=0.5),
        terms={},
    )
    fields = train_fields(report, config, ModelConfig(vocab_size=100), Topology())
    assert fields["train/tokens"] == sequences * SEQ_LEN
    assert fields["speed/tokens_per_second"] == since * SEQ_LEN / 0.5
