"""A mixture of experts, grouped against eager, and against a dense feed-forward of the same active size: time of each.

    python -m tests.bench.experts [--tokens 2048] [--width 512] [--expert-size 704] [--experts 8] [--chosen 2]
                                  [--pairs 9] [--threads 2] [--dtype float32] [--skew 0.0]

Forward and backward, gradients of the input and of all parameters. The ways take turns in one process, so that whatever
else the machine does hits all; each ratio is from one turn. The dense feed-forward has C times an expert's hidden
width, so it does the work of the chosen experts, without router, sorting and gathering. `--skew` is added to the logits
of expert 0.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llm.config import ModelConfig
from llm.experts import MixtureOfExperts
from llm.layers import FeedForward

Pass = Callable[[], Tensor]


def fill(module: nn.Module) -> nn.Module:
    """Random values of a usual size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))
    return module


def mixture(options: argparse.Namespace, backend: str) -> nn.Module:
    """Experts; expert 0 is the more popular the larger the skew (the input's first feature is 1)."""
    layer = MixtureOfExperts(
        hidden_size=options.width,
        expert_size=options.expert_size,
        num_experts=options.experts,
        experts_per_token=options.chosen,
        normalize_weights=True,
        activation="silu",
        backend=backend,
    )
    fill(layer)
    with torch.no_grad():
        layer.gate.weight[0, 0] = options.skew
    return layer.to(options.device, getattr(torch, options.dtype))


def dense(options: argparse.Namespace) -> nn.Module:
    """The feed-forward whose matrices are as large as those of the chosen experts together."""
    config = ModelConfig(hidden_size=options.width, intermediate_size=options.chosen * options.expert_size)
    return fill(FeedForward(config)).to(options.device, getattr(torch, options.dtype))


def ways(options: argparse.Namespace) -> dict[str, Pass]:
    """A forward pass of each that ends in a number."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(options.tokens // 256, 256, options.width, generator=generator)
    x[..., 0] = 1.0
    x = x.to(options.device, getattr(torch, options.dtype)).requires_grad_()
    layers = {name: mixture(options, name) for name in ("eager", "grouped")}
    feed_forward = dense(options)

    def through(layer: nn.Module) -> Tensor:
        out, sums = layer(x)
        total: Tensor = out.float().sum() + 0.01 * sums.balance_sum + 0.001 * sums.z_sum
        return total

    return {
        "eager": lambda: through(layers["eager"]),
        "grouped": lambda: through(layers["grouped"]),
        "dense": lambda: feed_forward(x).float().sum(),
    }


def seconds(way: Pass, device: str) -> float:
    """One forward and backward pass."""
    _wait(device)
    started = time.perf_counter()
    way().backward()  # type: ignore[no-untyped-call]
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print the time of each way, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="a multiple of 256")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--expert-size", type=int, default=704)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--chosen", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skew", type=float, default=0.0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.tokens} tokens, width {options.width}, {options.experts} experts of {options.expert_size}, "
        f"{options.chosen} chosen, skew {options.skew}, {options.dtype}, {options.device}, {options.threads} threads"
    )
    passes = ways(options)
    times: dict[str, list[float]] = {name: [] for name in passes}
    for way in passes.values():
        seconds(way, options.device)  # warm
    for _ in range(options.pairs):
        for name, way in passes.items():
            times[name].append(seconds(way, options.device))
    active = options.width * (options.experts + 3 * options.chosen * options.expert_size)
    flops = options.tokens * 6.0 * active
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:<8} {median * 1e3:9.2f} ms  {flops / median / 1e9:10,.1f} GFLOP/s of the active parameters")
    for other in ("eager", "dense"):
        ratios = [mine / theirs for mine, theirs in zip(times["grouped"], times[other], strict=True)]
        print(
            f"grouped / {other}: {statistics.median(ratios):.3f} of its time (smallest {min(ratios):.3f}, largest "
            f"{max(ratios):.3f}, {len(ratios)} pairs)"
        )


if __name__ == "__main__":
    main()
