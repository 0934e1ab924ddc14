"""Checkpoints: how long a save holds up the training, and how long a state takes to load on another number of ranks.

    python -m tests.bench.checkpoint stall [--parameters 50e6] [--pairs 5] [--directory /tmp]
    python -m tests.bench.checkpoint load [--parameters 1e9] [--from-ranks 4] [--to-ranks 3] [--directory /tmp]

`stall` saves one state twice in turn: beside the training, where the step path stands still for the copy to host memory
and the start of the thread; and synchronously, where it waits until the same bytes are durable and published. The
figure is the median over pairs of the ratio. Both take the host memory of the save before, as a run does from its
second save on.

`load` writes a state of masters and two moments (12 bytes a parameter) from so many ranks, one process after the other,
cut as ZeRO 1 and 2 cut it. Then every rank of another number, again one process after the other on this one node,
verifies its share of the files and sets its flat tensors from the fragments it needs, by the code that a restart runs;
every value is checked. Beside it the same ranks' bytes are read plainly, in file order: into memory of that size, and
into one buffer of 1 MiB over and over. Cold: the files are dropped from the page cache once before the first rank.
Warm: they are in it as far as memory goes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from cluster.checkpoint import CheckpointReader, CheckpointWriter, VerifiedFiles, find_checkpoint
from cluster.config import CheckpointConfig
from cluster.engines import flat_state
from cluster.engines.flat_state import Placement
from cluster.engines.protocol import MASTER, Fragment

SHAPE = (4096, 4099)
"""Of every parameter: 67 MB of fp32, as in a model of some billions, in sizes that no number of ranks divides."""
STATES = (MASTER, "exp_avg", "exp_avg_sq")
GIB = 2**30
BUFFER_BYTES = 1 << 20


class HeldStates(torch.optim.Optimizer):
    """The states of an optimizer without its arithmetic, whose compiler takes 70 MiB of memory to import."""

    def __init__(self) -> None:
        self.state = defaultdict(dict)
        self.defaults = {}


def parameter_shapes(parameters: int) -> list[tuple[int, int]]:
    """Shapes that add up to about so many elements."""
    size = SHAPE[0] * SHAPE[1]
    rows = parameters % size // SHAPE[1]
    return [SHAPE] * (parameters // size) + ([(rows, SHAPE[1])] if rows else [])


def fragments(shapes: list[tuple[int, int]], rank: int, world_size: int) -> Iterator[Fragment]:
    """What a rank owns where the parameters are laid end to end and cut into equal partitions."""
    total = sum(rows * columns for rows, columns in shapes)
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    begin = 0
    for number, shape in enumerate(shapes):
        size = shape[0] * shape[1]
        first, last = max(low, begin), min(high, begin + size)
        if first < last:
            yield Fragment(f"layer.{number:03d}.weight", "decay", shape, first - begin, last - first)
        begin += size


def pattern() -> torch.Tensor:
    """What every tensor repeats."""
    return torch.randn(999_983, generator=torch.Generator().manual_seed(0))


def fill(target: torch.Tensor, fragment: Fragment, state: str, block: torch.Tensor) -> None:
    """Set a fragment's values, which follow from parameter, state and place."""
    shift = int(fragment.name.split(".")[1]) + 1000 * STATES.index(state)
    start = (fragment.offset + shift) % len(block)
    done = 0
    while done < len(target):
        count = min(len(target) - done, len(block) - start)
        torch.add(block[start : start + count], float(shift), out=target[done : done + count])
        done, start = done + count, 0


def rank_state(
    shapes: list[tuple[int, int]], rank: int, world_size: int, *, filled: bool
) -> tuple[list[Placement], HeldStates]:
    """A rank's flat tensors, as an engine holds them."""
    held = list(fragments(shapes, rank, world_size))
    flat = torch.nn.Parameter(torch.ones(sum(fragment.length for fragment in held)))  # touched, as a model's is
    optimizer = HeldStates()
    placements, start = [], 0
    for fragment in held:
        placements.append(Placement(fragment, flat, start))
        start += fragment.length
    if filled:
        block = pattern()
        own = optimizer.state[flat]
        own["step"] = torch.tensor(7.0)
        own.update({state: torch.empty_like(flat, requires_grad=False) for state in STATES[1:]})
        for placement in placements:
            for state in STATES:
                fill(placement.view(flat if state == MASTER else own[state]), placement.fragment, state, block)
    return placements, optimizer


def drop_from_cache(directory: Path) -> None:
    """Have the next read of these files come from the disk."""
    for path in directory.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write_rank(run: Path, shapes: list[tuple[int, int]], rank: int, world_size: int) -> None:
    """Write one rank's part, or publish all as rank 0, which therefore comes last."""
    writer = CheckpointWriter(run, attempt=1, rank=rank, world_size=world_size, policy=CheckpointConfig())
    placements, optimizer = rank_state(shapes, rank, world_size, filled=True)
    states = [  # views, not copies: nothing changes them meanwhile
        flat_state.FragmentState(
            placement.fragment,
            {
                state: placement.view(placement.flat if state == MASTER else optimizer.state[placement.flat][state])
                for state in STATES
            },
            {"step": 7.0},
        )
        for placement in placements
    ]
    writer.save(1, states, {})
    writer.next_loss(1.0)
    writer.finish()


def read_plainly(run: Path, shapes: list[tuple[int, int]], rank: int, world_size: int) -> dict[str, float]:
    """Read as many bytes as the rank loads, in file order, into new memory for all of them."""
    return _read(run, rank, world_size, in_place=False)


def read_through(run: Path, shapes: list[tuple[int, int]], rank: int, world_size: int) -> dict[str, float]:
    """Read them into one buffer over and over: what is left of reading when the bytes are not kept."""
    return _read(run, rank, world_size, in_place=True)


def _read(run: Path, rank: int, world_size: int, *, in_place: bool) -> dict[str, float]:
    info = find_checkpoint(run)
    assert info.manifest is not None
    total = info.manifest.size_bytes
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    begin, done, started = 0, 0, time.perf_counter()
    buffer = memoryview(torch.empty(BUFFER_BYTES if in_place else high - low, dtype=torch.uint8).numpy())
    for record in info.manifest.files:
        first, last = max(low, begin) - begin, min(high, begin + record.size_bytes) - begin
        begin += record.size_bytes
        if first >= last:
            continue
        with open(info.directory / record.path, "rb", buffering=0) as file:
            file.seek(first)
            while first < last:
                place = 0 if in_place else done
                count = file.readinto(buffer[place : place + min(BUFFER_BYTES, last - first)])
                first, done = first + count, done + count
    return {"seconds": time.perf_counter() - started}


def load_rank(run: Path, shapes: list[tuple[int, int]], rank: int, world_size: int) -> dict[str, float]:
    """Verify this rank's share and set its state; what the other ranks have verified is taken as found good."""
    placements, optimizer = rank_state(shapes, rank, world_size, filled=False)
    started = time.perf_counter()
    info = find_checkpoint(run)
    assert info.manifest is not None
    files = VerifiedFiles(info)
    problem = files.verify_share(rank, world_size)
    if problem is not None:
        raise SystemExit(problem)
    verified = time.perf_counter()
    files.vouch([1.0] * len(info.manifest.files))
    flat_state.load(placements, optimizer, CheckpointReader(info.directory, info.manifest, files.path))
    loaded = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    check(placements, optimizer)
    return {"seconds": loaded - started, "verifying": verified - started, "peak_bytes": peak}


def check(placements: list[Placement], optimizer: HeldStates) -> None:
    """Compare every value with what was written."""
    block, expected = pattern(), torch.empty(max(placement.fragment.length for placement in placements))
    for placement in placements:
        for state in STATES:
            held = placement.view(placement.flat if state == MASTER else optimizer.state[placement.flat][state])
            fill(expected[: len(held)], placement.fragment, state, block)
            if not torch.equal(held, expected[: len(held)]):
                raise SystemExit(f"{state} of {placement.fragment.name} is not what was written")


ROLES = {"write": write_rank, "plain": read_plainly, "through": read_through, "load": load_rank}


def in_process(role: str, run: Path, parameters: int, rank: int, world_size: int) -> subprocess.Popen[str]:
    """Play one rank's role in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.checkpoint", "rank", role, run, parameters, rank, world_size]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> dict[str, float]:
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a rank ended with {process.returncode}")
    figures: dict[str, float] = json.loads(printed)
    return figures


def measure_load(options: argparse.Namespace) -> None:
    parameters, sources, targets = int(options.parameters), options.from_ranks, options.to_ranks
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=options.directory))
    try:
        needed = 12 * parameters
        if shutil.disk_usage(directory).free < 1.2 * needed:
            raise SystemExit(f"{needed / 1e9:.1f} GB of room are needed in {options.directory}: lower --parameters.")
        for rank in reversed(range(1, sources)):
            write_part(directory, parameters, rank, sources)
        write_part(directory, parameters, 0, sources)
        info = find_checkpoint(directory)
        assert info.manifest is not None
        size = info.manifest.size_bytes
        print(f"{parameters / 1e6:.0f} M parameters, {size / 1e9:.2f} GB, {sources} ranks -> {targets} ranks, one node")
        for title in ("cold", "warm"):
            results: dict[str, list[dict[str, float]]] = {}
            for role in ("through", "plain", "load"):
                if title == "cold":
                    drop_from_cache(directory)
                results[role] = [
                    outcome(in_process(role, directory, parameters, rank, targets)) for rank in range(targets)
                ]
            seconds = {role: sum(item["seconds"] for item in ranks) for role, ranks in results.items()}
            verifying = sum(item["verifying"] for item in results["load"])
            peak = max(item["peak_bytes"] for item in results["load"])
            print(
                f"{title}: load {seconds['load']:.2f} s (of it verifying {verifying:.2f} s); plain reading "
                f"{seconds['plain']:.2f} s into memory, ratio {seconds['load'] / seconds['plain']:.2f}, "
                f"{seconds['through']:.2f} s through a buffer, ratio {seconds['load'] / seconds['through']:.2f}; "
                f"peak memory of a rank {peak / GIB:.2f} GiB, its state {12 * parameters / targets / GIB:.2f} GiB"
            )
    finally:
        shutil.rmtree(directory)


def write_part(directory: Path, parameters: int, rank: int, world_size: int) -> None:
    outcome(in_process("write", directory, parameters, rank, world_size))


def measure_stall(options: argparse.Namespace) -> None:
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=options.directory))
    shapes = parameter_shapes(int(options.parameters))
    placements, optimizer = rank_state(shapes, 0, 1, filled=True)
    policy = CheckpointConfig(keep_last=1)
    writer = CheckpointWriter(directory, attempt=1, rank=0, world_size=1, policy=policy)
    ratios, stalls, whole = [], [], []
    try:
        for number in range(options.pairs + 1):
            spare = writer.spare()
            started = time.perf_counter()
            writer.save(2 * number, flat_state.snapshot(placements, optimizer, spare), {})
            stall = time.perf_counter() - started
            spare = writer.spare()
            started = time.perf_counter()
            writer.save(2 * number + 1, flat_state.snapshot(placements, optimizer, spare), {})
            writer.next_loss(None)
            assert writer._thread is not None
            writer._thread.join()
            synchronous = time.perf_counter() - started
            if number > 0:  # the first pair allocates
                ratios.append(stall / synchronous)
                stalls.append(stall)
                whole.append(synchronous)
    finally:
        shutil.rmtree(directory)
    parameters = sum(rows * columns for rows, columns in shapes)
    size = f"{parameters / 1e6:.1f} M parameters, {12 * parameters / 1e9:.2f} GB"
    print(f"{size}, 1 rank, {torch.get_num_threads()} threads")
    print(
        f"stall {statistics.median(stalls):.3f} s, synchronous save {statistics.median(whole):.3f} s, ratio "
        f"{statistics.median(ratios):.3f} (smallest {min(ratios):.3f}, largest {max(ratios):.3f}, {len(ratios)} pairs)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    stall = verbs.add_parser("stall")
    stall.add_argument("--parameters", type=float, default=50e6)
    stall.add_argument("--pairs", type=int, default=5, help="pairs after the first")
    load = verbs.add_parser("load")
    load.add_argument("--parameters", type=float, default=1e9)
    load.add_argument("--from-ranks", type=int, default=4)
    load.add_argument("--to-ranks", type=int, default=3)
    for verb in (stall, load):
        verb.add_argument("--directory", default=tempfile.gettempdir(), help="on the disk to be measured")
    rank = verbs.add_parser("rank", help="one rank of `load`; not for people")
    for name, kind in (("role", str), ("run", Path), ("parameters", int), ("rank", int), ("world_size", int)):
        rank.add_argument(name, type=kind)
    options = parser.parse_args()
    if options.verb == "rank":
        shapes = parameter_shapes(options.parameters)
        print(json.dumps(ROLES[options.role](options.run, shapes, options.rank, options.world_size) or {}))
    elif options.verb == "load":
        measure_load(options)
    else:
        measure_stall(options)


if __name__ == "__main__":
    main()
