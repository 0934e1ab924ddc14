"""Training steps of our model against Hugging Face's `LlamaForCausalLM` in the same loop: tokens per second, ratios.

    python -m tests.bench.against_transformers [--sizes 6m 40m] [--lengths 256 1024] [--precisions fp32 bf16]
        [--steps 5] [--threads 2] [--compile] [--device cuda]

Both have the same weights, data, shape, dtype, SDPA attention, masters, clipping and fused AdamW (one engine drives
both), and live in one process, where they take turns step by step. A figure is the median over steps of the ratio of
two neighbours; above 1 ours is faster. The first steps, which allocate and compile, are left out.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import MicroBatch
from cluster.engines.torch_engine import TorchEngine
from llm.accounting import count_parameters, parameter_parts
from llm.compilation import compile_blocks
from llm.config import ModelConfig, OptimizerConfig
from llm.loss import LossSums
from llm.transformer import Transformer

SIZES = {
    "6m": ModelConfig(
        vocab_size=8192, hidden_size=256, num_hidden_layers=5, num_attention_heads=4, intermediate_size=704
    ),
    "40m": ModelConfig(
        vocab_size=32000, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=1408
    ),
}
TOKENS = 4096
_WARM_STEPS = 2
_AGREE = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative difference of the two losses that arithmetic in another order explains."""


class HuggingFace(nn.Module):
    """`LlamaForCausalLM` behind the signature that engines know."""

    def __init__(self, config: ModelConfig) -> None:
        import transformers

        super().__init__()
        self.config = config
        self.inner = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.key_value_heads,
                head_dim=config.head_size,
                rms_norm_eps=config.rms_norm_eps,
                max_position_embeddings=8192,
                tie_word_embeddings=config.tie_word_embeddings,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                attn_implementation="sdpa",
                use_cache=False,
            )
        )

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        weights: Tensor,
        documents: Tensor | None,
        dropout_keys_B: Tensor | None = None,
    ) -> LossSums:
        """Its own loss, as a sum."""
        assert documents is None
        assert dropout_keys_B is None
        loss = self.inner(input_ids=tokens, labels=targets, shift_labels=targets).loss
        return LossSums(loss * targets.numel(), loss.detach() * targets.numel(), weights.sum(), {})

    def take(self, model: Transformer) -> None:
        """Take another model's weights."""
        apart: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            parts = parameter_parts(name, tensor.shape, model.config)
            apart.update(zip(parts, tensor.split(list(parts.values())), strict=True))
        self.inner.load_state_dict(apart, strict=False)


def engines(config: ModelConfig, options: argparse.Namespace, precision: Any) -> dict[str, TorchEngine]:
    """Both in the same state."""
    ours, theirs = Transformer(config, "sdpa"), HuggingFace(config)
    if options.compile:
        compile_blocks(ours)
        for layer in theirs.inner.model.layers:
            layer.compile()
    optimizer = OptimizerConfig()
    mine = TorchEngine(ours, optimizer=optimizer, precision=precision, device=options.device)
    mine.load(InitialState(config, 0))
    if precision == "fp32":
        theirs.take(ours)
    other = TorchEngine(theirs, optimizer=optimizer, precision=precision, device=options.device)  # type: ignore[arg-type]
    if precision == "bf16":  # its masters are apart from the model's parameters
        other.load(_Renamed(InitialState(config, 0), config))  # type: ignore[arg-type]
    return {"ours": mine, "transformers": other}


class _Renamed:
    """Initial values under the names of `HuggingFace`."""

    def __init__(self, source: InitialState, config: ModelConfig) -> None:
        from cluster.engines.protocol import MASTER, Fragment
        from llm.accounting import parameter_shapes

        self.values: dict[str, Tensor] = {}
        for name, shape in parameter_shapes(config).items():
            whole = source.read(Fragment(name, "", shape, 0, int(torch.tensor(shape).prod())), MASTER).view(shape)
            parts = parameter_parts(name, shape, config)
            self.values.update(zip(parts, whole.split(list(parts.values())), strict=True))

    def scalars(self, name: str) -> dict[str, float]:
        return {}

    def tensor_names(self, name: str) -> tuple[str, ...]:
        return ()

    def read_into(self, fragment: Any, state: str, target: Tensor) -> None:
        target.copy_(self.values[fragment.name.removeprefix("inner.")].reshape(-1))


def step(engine: TorchEngine, batch: MicroBatch, scale: Tensor) -> tuple[float, float]:
    """One optimizer step: seconds, loss sum."""
    _wait(batch)
    started = time.perf_counter()
    loss = engine.accumulate(batch, scale).loss_sum.item()
    engine.update(1e-3).item()
    _wait(batch)
    return time.perf_counter() - started, loss


def _wait(batch: MicroBatch) -> None:
    if batch.tokens.is_cuda:
        torch.cuda.synchronize()


def measure(name: str, length: int, precision: str, options: argparse.Namespace) -> float:
    """Print and return the median ratio of one setting."""
    config, rows = SIZES[name], max(1, options.tokens // length)
    both = engines(config, options, precision)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size or 1, (rows, length + 1), generator=generator).to(options.device)
    ones = torch.ones(rows, length, device=options.device)
    batch = MicroBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), ones, None)
    scale = torch.tensor(1.0 / (rows * length), device=options.device)
    seconds: dict[str, list[float]] = {which: [] for which in both}
    for number in range(options.steps + _WARM_STEPS):
        took = {which: step(both[which], batch, scale) for which in (sorted(both) if number % 2 else both)}
        if number == 0:
            losses = [took[which][1] for which in both]
            if abs(losses[0] - losses[1]) > _AGREE[precision] * losses[1]:
                raise SystemExit(f"the models disagree: losses {losses}")
        if number >= _WARM_STEPS:
            for which in both:
                seconds[which].append(took[which][0])
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["transformers"], strict=True)]
    speed = {which: rows * length / statistics.median(values) for which, values in seconds.items()}
    print(
        f"{name:>4} ({count_parameters(config).total / 1e6:.1f} M) seq {length:<5} {precision}  "
        f"ours {speed['ours']:9,.0f} tokens/s  transformers {speed['transformers']:9,.0f} tokens/s  "
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs)",
        flush=True,
    )
    return statistics.median(ratios)


def main() -> None:
    """Print a line for each setting, and the smallest ratio."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of one step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers of both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {options.device}, "
        f"{options.threads} threads, {options.tokens} tokens a step, compile {'on' if options.compile else 'off'}"
    )
    settings = itertools.product(options.sizes, options.lengths, options.precisions)
    ratios = [measure(*setting, options) for setting in settings]
    print(f"smallest ratio {min(ratios):.3f}, median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
