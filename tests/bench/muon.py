"""Muon against AdamW on the shipped text: held-out loss by step, and what share of the steps Muon needs.

    python -m tests.bench.muon [--steps 300] [--batch 8] [--share 0.8] [--out DIR] [--threads 2]

AdamW is trained at each of several rates; the best of its final held-out losses is what has to be reached. Muon is
trained for that share of the steps, its own whole schedule long, at each of its rates. Everything else is the same:
model, initial values, batches, warm-up, cosine to a tenth, weight decay, clipping. Each run is a run directory, so that
`longhaul report DIR/*` draws the curves, and a run that is there already is not made again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from cluster.attempt import Surroundings, run_attempt
from cluster.config import CheckpointConfig, ResourcesConfig, RunConfig, TrainConfig, WandbConfig
from cluster.engines.builders import torch_engine
from cluster.evaluation.config import EvaluationConfig
from cluster.record.logs import read_lines
from cluster.topology import Topology
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.sample.shipped import sample_build_config
from llm.config import ModelConfig, OptimizerConfig, ScheduleConfig
from tests.integration.tiny import SilentLink, begin, no_tracking

MODEL = ModelConfig(
    hidden_size=192, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=3, intermediate_size=512
)
ADAMW_RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
MUON_RATES = (2e-3, 4e-3, 8e-3)
_POINTS = 20


def configured(options: argparse.Namespace, optimizer: OptimizerConfig, steps: int) -> RunConfig:
    """One run."""
    out = options.out.resolve()
    return RunConfig(
        name=f"{optimizer.name}-{optimizer.learning_rate:g}-{steps}",
        storage=str(out),
        data=DataConfig(dataset=str(out / "dataset"), seq_len=128),
        model=MODEL,
        train=TrainConfig(max_steps=steps, global_batch_size=options.batch, micro_batch_size=options.batch),
        optimizer=optimizer,
        schedule=ScheduleConfig(warmup_steps=max(1, steps // 10), min_learning_rate_ratio=0.1),
        resources=ResourcesConfig(workers=1, cpus_per_worker=options.threads),
        checkpoint=CheckpointConfig(every_steps=steps, keep_last=1),
        evaluation=EvaluationConfig(every_steps=max(1, steps // _POINTS), sample_tokens=0),
        wandb=WandbConfig(mode="disabled"),
    )


def final_loss(config: RunConfig) -> float:
    """Held-out loss after the last step; trains where the record does not have it."""
    found = _recorded(config)
    if found is None:
        begin(config)
        surroundings = Surroundings(
            build_engine=torch_engine,
            zero_stage=None,
            link=SilentLink(),
            tracking=no_tracking(),
            observe=lambda batch: None,
        )
        run_attempt(config, Topology(threads=config.resources.cpus_per_worker), surroundings)
        found = _recorded(config)
    assert found is not None
    return found


def _recorded(config: RunConfig) -> float | None:
    path = Path(config.storage) / config.name / "metrics.jsonl"
    rows = read_lines(path) if path.exists() else []
    losses = [row["eval/loss"] for row in rows if row["kind"] == "eval" and row["step"] == config.train.max_steps]
    return float(losses[0]) if losses else None


def main() -> None:
    """Print a table, and fail where Muon needs more than its share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8, help="sequences of 128 tokens in a step")
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--out", type=Path, default=Path("muon-runs"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out = options.out.resolve()
    if not (out / "dataset" / "manifest.json").exists():
        build_dataset(sample_build_config("sample:austen", out / "dataset"))
    reached: dict[str, float] = {}
    for name, rates, steps in (
        ("adamw", ADAMW_RATES, options.steps),
        ("muon", MUON_RATES, round(options.share * options.steps)),
    ):
        for rate in rates:
            config = configured(options, OptimizerConfig(name=name, learning_rate=rate), steps)  # type: ignore[arg-type]
            loss = final_loss(config)
            reached[name] = min(loss, reached.get(name, loss))
            print(f"{name:<6} rate {rate:<6g} {steps:4} steps  held-out loss {loss:.4f}", flush=True)
    print(
        f"best: adamw {reached['adamw']:.4f} in {options.steps} steps, "
        f"muon {reached['muon']:.4f} in {options.share:g} of them"
    )
    if reached["muon"] > reached["adamw"]:
        sys.exit("Muon did not reach the loss of AdamW.")


if __name__ == "__main__":
    main()
