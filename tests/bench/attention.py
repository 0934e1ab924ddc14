"""Attention with documents and windows against plain causal attention of the same shape, forward and backward.

    python -m tests.bench.attention [--lengths 256 1024] [--tokens 4096] [--heads 8] [--groups 8] [--head-size 64]
                                    [--pairs 9] [--dtype float32] [--backends sdpa varlen]

Ratio = time of the backend with its mask, made once, / time of torch's scaled_dot_product_attention(is_causal=True),
both taken in turn in one process, one ratio a pair. `mean 4051` is the shipped sample's mean document in tokens
(sample:austen, vocabulary 2048: 956,061 tokens in 236 documents); lengths are exponentially distributed about the mean.
`process` is the CPU time of all threads, which other work on the machine disturbs less than the clock does.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.attention import BACKENDS, AttentionNeeds, ScoreRule, Visibility, attention_backend, resolve_attention
from llm.errors import AttentionBackendError

SAMPLE_MEAN_TOKENS = 4051
Pass = Callable[[], Tensor]


def layouts(rows: int, length: int, device: str) -> dict[str, tuple[Tensor | None, int | None]]:
    """Document ids and window by name."""
    means = {f"mean {mean}": mean for mean in (SAMPLE_MEAN_TOKENS, length // 2, 100, 30, 8, 2)}
    return {
        "causal": (None, None),
        "one document a row": (torch.arange(rows, device=device)[:, None].expand(rows, length), None),
        **{name: (_documents(rows, length, mean).to(device), None) for name, mean in means.items()},
        "one token each": (torch.arange(rows * length, device=device).reshape(rows, length), None),
        **{f"window {window}": (None, window) for window in (32, length // 4, length // 2, 3 * length // 4)},
        f"mean 100 window {length // 4}": (_documents(rows, length, 100).to(device), length // 4),
    }


def _documents(rows: int, length: int, mean: float) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.empty(rows * length).exponential_(1 / mean, generator=draw).ceil().long()
    ids = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    begin = max(int(lengths[0]) - length // 2, 0)  # so that some row holds a boundary, however long documents are
    return ids[begin : begin + rows * length].reshape(rows, length).int()


def seconds(once: Pass, heads: list[Tensor], upstream: Tensor, clock: Callable[[], float]) -> float:
    """One forward and backward pass."""
    _wait(upstream)
    started = clock()
    torch.autograd.grad(once(), heads, upstream)
    _wait(upstream)
    return clock() - started


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def compare(options: argparse.Namespace, length: int) -> None:
    """Print a line for each layout and backend."""
    rows, device, dtype = options.tokens // length, options.device, getattr(torch, options.dtype)
    shape = (rows, length, options.heads, options.head_size)
    q, upstream = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    k, v = (torch.randn((rows, length, options.groups, options.head_size), device=device, dtype=dtype) for _ in "kv")
    heads = [x.requires_grad_() for x in (q, k, v)]
    rule = ScoreRule(scale=options.head_size**-0.5, softcap=None)
    for layout, (ids, window) in layouts(rows, length, device).items():
        visibility = Visibility(length, length, ids, window, dtype, torch.device(device))
        for name in options.backends:
            backend = attention_backend(name)
            started = time.perf_counter()
            mask = backend.prepare(visibility)
            _wait(upstream)
            prepared = time.perf_counter() - started

            def masked(backend=backend, mask=mask) -> Tensor:  # type: ignore[no-untyped-def]
                attended: Tensor = backend.attend(q, k, v, mask, rule)
                return attended

            report = f"{rows} x {length} {layout:<20} {name:<7} prepared in {prepared * 1e3:6.2f} ms"
            print(report + _ratios(options, masked, lambda: plain(q, k, v), heads, upstream), flush=True)


def plain(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
    """Causal attention without a mask."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def _ratios(options: argparse.Namespace, masked: Pass, causal: Pass, heads: list[Tensor], upstream: Tensor) -> str:
    text = ""
    clocks = {"clock": time.perf_counter} | ({} if upstream.is_cuda else {"process": time.process_time})
    for once in (masked, causal):
        seconds(once, heads, upstream, time.perf_counter)  # warm
    for name, clock in clocks.items():
        pairs = [[seconds(once, heads, upstream, clock) for once in (masked, causal)] for _ in range(options.pairs)]
        own, other = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
        text += f" | {name} {own * 1e3:7.2f} of {other * 1e3:7.2f} ms, ratio {ratio:.2f}"
    return text


def _able(options: argparse.Namespace) -> list[str]:
    """Backends that serve here; flash3 and flash4 change torch for the process, and are run when asked for alone."""
    able = []
    for name in options.backends or [name for name in BACKENDS if not name.startswith("flash")]:
        try:
            resolve_attention(
                name,
                AttentionNeeds(
                    device_type=options.device,
                    head_size=options.head_size,
                    training=True,
                    documents=True,
                    dtype=getattr(torch, options.dtype),
                ),
            )
            able.append(name)
        except AttentionBackendError as error:
            print(error)
    return able


def main() -> None:
    """Print ratios for every layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--backends", nargs="+", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(
        f"{hardware}, {options.threads} threads, torch {torch.__version__}, {options.dtype}, {options.heads} heads, "
        f"{options.groups} key/value heads, head size {options.head_size}, {options.pairs} pairs"
    )
    options.backends = _able(options)
    for length in options.lengths:
        compare(options, length)


if __name__ == "__main__":
    main()
