"""The loss that never holds all logits, against logits and then cross entropy: time and peak memory of both.

    python -m tests.bench.linear_loss [--tokens 8192] [--width 1024] [--vocabulary 131072] [--pairs 3] [--dtype float32]

Forward and backward, gradients of hidden states and of the output weight. Times are taken in turn in one process, each
ratio from one pair. Peak memory is that of a process of its own, above what it held before: on a GPU as torch's
allocator counts it, on the CPU the largest resident set.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.loss import cross_entropy_sums, linear_cross_entropy_sums

Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def all_logits(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Logits of all positions, then cross entropy."""
    return cross_entropy_sums(F.linear(hidden, weight), targets, weights).objective_sum


def in_chunks(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Logits of a chunk of positions at a time."""
    return linear_cross_entropy_sums(hidden, weight, targets, weights).objective_sum


WAYS: dict[str, Way] = {"all logits": all_logits, "in chunks": in_chunks}


def inputs(options: argparse.Namespace) -> list[Tensor]:
    """Random hidden states, output weight, targets and loss weights."""
    device, dtype = options.device, getattr(torch, options.dtype)
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(1, options.tokens, options.width, generator=generator, device=device).to(dtype)
    weight = torch.randn(options.vocabulary, options.width, generator=generator, device=device).to(dtype) * 0.02
    targets = torch.randint(0, options.vocabulary, (1, options.tokens), generator=generator, device=device)
    ones = torch.ones(1, options.tokens, device=device)
    return [hidden.requires_grad_(), weight.requires_grad_(), targets, ones]


def seconds(way: Way, given: list[Tensor]) -> float:
    """One forward and backward pass."""
    given[0].grad = given[1].grad = None
    _wait(given[0])
    started = time.perf_counter()
    way(*given).backward()  # type: ignore[no-untyped-call]
    _wait(given[0])
    return time.perf_counter() - started


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def _measure_peak(name: str, options: argparse.Namespace, answer: Connection) -> None:
    torch.set_num_threads(options.threads)
    given = inputs(options)
    on_gpu = given[0].is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else _resident_bytes()
    WAYS[name](*given).backward()  # type: ignore[no-untyped-call]
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.send(peak - before)


def _resident_bytes() -> int:
    """What the process holds now; the most that it ever held counts what making the inputs took besides."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes(name: str, options: argparse.Namespace) -> int:
    """Memory that a pass takes, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_peak, args=(name, options, sender))
    child.start()
    sender.close()
    found: int = receiver.recv()
    child.join()
    return found


def main() -> None:
    """Print both ways' time and memory, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.tokens} tokens, width {options.width}, vocabulary {options.vocabulary}, {options.dtype}, "
        f"{options.device}, {options.threads} threads"
    )
    peaks = {name: peak_bytes(name, options) for name in WAYS}
    given = inputs(options)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for way in WAYS.values():
        seconds(way, given)  # warm
    for _ in range(options.pairs):
        for name, way in WAYS.items():
            times[name].append(seconds(way, given))
    for name in WAYS:
        print(f"{name:<12} {statistics.median(times[name]):8.3f} s  peak {peaks[name] / 2**20:10,.0f} MiB")
    ratios = [chunked / whole for whole, chunked in zip(times["all logits"], times["in chunks"], strict=True)]
    print(
        f"time ratio {statistics.median(ratios):.3f} (smallest {min(ratios):.3f}, largest {max(ratios):.3f}, "
        f"{len(ratios)} pairs), memory ratio {peaks['in chunks'] / peaks['all logits']:.3f}"
    )


if __name__ == "__main__":
    main()
