"""Tokens per second of the DeepSpeed engine over those of the plain-torch engine: same model, data, clipping, AdamW.

    python -m tests.bench.step_overhead [--stage 2] [--steps 5] [--threads 2] [--small]

Both engines live in one process and take turns step by step, so that whatever else the machine does hits both. The
figure is the median over steps of the pairwise ratio, with the smallest and the largest beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
import torch.distributed as dist

from cluster.config import ZeroConfig
from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import Engine, MicroBatch
from cluster.topology import Topology
from llm.accounting import count_parameters
from llm.config import ModelConfig, OptimizerConfig

LARGE = ModelConfig(
    vocab_size=32000, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=1408
)
SMALL = ModelConfig(vocab_size=4096, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=704)
OPTIMIZER = OptimizerConfig()
MICRO_BATCHES = 4


def engines(model: ModelConfig, stage: int, rows: int, threads: int) -> dict[str, Engine]:
    """Both engines, holding the same state."""
    from cluster.engines.deepspeed_engine import DeepSpeedEngine
    from cluster.engines.torch_engine import TorchEngine
    from llm.transformer import Transformer

    built: dict[str, Engine] = {
        "torch": TorchEngine(Transformer(model, "sdpa"), optimizer=OPTIMIZER, precision="fp32"),
        "deepspeed": DeepSpeedEngine(
            lambda: Transformer(model, "sdpa"),
            optimizer=OPTIMIZER,
            zero=ZeroConfig(stage=stage),
            precision="fp32",
            micro_batch_size=rows,
            micro_batches=MICRO_BATCHES,
            topology=Topology(threads=threads),
        ),
    }
    for engine in built.values():
        engine.load(InitialState(model, 0))
    return built


def step(engine: Engine, batch: MicroBatch, scale: torch.Tensor) -> tuple[float, float]:
    """One optimizer step: seconds it took, loss sum."""
    started = time.perf_counter()
    loss = sum(engine.accumulate(batch, scale).loss_sum.item() for _ in range(MICRO_BATCHES))
    engine.update(1e-3).item()
    return time.perf_counter() - started, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, default=2, choices=(0, 1, 2, 3))
    parser.add_argument("--steps", type=int, default=5, help="pairs after the first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="5 M parameters and 2,048 tokens a step, for a quick look")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, rows, length = (SMALL, 2, 256) if options.small else (LARGE, 4, 512)
    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", store=dist.FileStore(f"{directory}/store", 1), rank=0, world_size=1)
        built = engines(model, options.stage, rows, options.threads)
        tokens = torch.randint(0, model.vocab_size or 1, (rows, length + 1), generator=torch.Generator().manual_seed(0))
        batch = MicroBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.ones(rows, length), None)
        per_step = rows * length * MICRO_BATCHES
        scale = torch.tensor(1.0 / per_step)
        ratios, seconds = [], {name: [] for name in built}
        for number in range(options.steps + 1):
            order = sorted(built) if number % 2 else sorted(built, reverse=True)
            took = {name: step(built[name], batch, scale) for name in order}
            if abs(took["torch"][1] - took["deepspeed"][1]) > 1e-4 * took["torch"][1]:
                raise SystemExit(f"the engines disagree: losses {took['torch'][1]} and {took['deepspeed'][1]}")
            if number > 0:  # the first step allocates
                ratios.append(took["torch"][0] / took["deepspeed"][0])
                for name in built:
                    seconds[name].append(took[name][0])
        dist.destroy_process_group()
    parameters = count_parameters(model).total
    print(f"{parameters / 1e6:.1f} M parameters, {per_step} tokens a step, fp32, {options.threads} threads, 1 worker")
    for name, values in seconds.items():
        print(f"{name:10s} {per_step / statistics.median(values):10.0f} tokens/s")
    print(
        f"ZeRO {options.stage} / torch: {statistics.median(ratios):.3f} "
        f"(smallest {min(ratios):.3f}, largest {max(ratios):.3f}, {len(ratios)} pairs)"
    )


if __name__ == "__main__":
    main()
