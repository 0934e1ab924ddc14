"""From the global batch to what one rank computes with: which rows, in which micro-batches, on the device, ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from cluster.engines.protocol import MicroBatch
from cluster.topology import Topology
from data_pipeline.sequences import Batch
from llm.dropout import row_keys

PADDING = -1
_AHEAD = 2


@dataclass(frozen=True)
class RankBatch:
    """What one rank does in one step: its micro-batches, the target weight in them, and the ids of its rows."""

    step: int
    micro_batches: tuple[MicroBatch, ...]
    weight_sum: float
    sample_index: npt.NDArray[np.int64]


def micro_batch_count(global_batch_size: int, world_size: int, micro_batch_size: int) -> int:
    """Micro-batches per rank and step, the same on every rank: those of the rank with the most rows."""
    most_rows = -(-global_batch_size // world_size)
    return -(-most_rows // micro_batch_size)


def rows_of_rank(
    indices: npt.NDArray[np.int64],
    rank: int,
    world_size: int,
    micro_batch_size: int,
    *,
    one_shape: bool = False,
    lengths: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Rows of a global batch that one rank computes, in as many micro-batches of as many rows as every other rank.

    Where rows do not fill them all, micro-batches are as small as their count allows, and padding fills the rest.

    Args:
        indices: [B] logical sequence indices of the global batch.
        rank: This rank.
        world_size: Number of ranks; may be anything, also a number that does not divide B.
        micro_batch_size: Rows in one forward pass at most.
        one_shape: Fill every micro-batch up to that, whatever the batch: it has as many rows at every step.
        lengths: [B] tokens of each row, where they differ: rows of like length are then put together, to pad little,
            and long ones are shared out over the ranks.

    Returns:
        [micro_batches, rows of each] indices, -1 where there is no row. All ranks together hold each index once.
    """
    count = micro_batch_count(len(indices), world_size, micro_batch_size)
    most_rows = -(-len(indices) // world_size)
    width = micro_batch_size if one_shape else -(-most_rows // count)
    rows = np.full(count * width, PADDING, dtype=np.int64)
    if lengths is None:
        mine = np.array_split(indices, world_size)[rank]
    else:
        mine = indices[np.argsort(-lengths, kind="stable")][rank::world_size]
    rows[: len(mine)] = mine
    return rows.reshape(count, width)


def to_device(batch: Batch, device: str) -> MicroBatch:
    """Make tensors of a batch's arrays on the device."""

    def tensor(array: npt.NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
        host = torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
        return host.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else host

    return MicroBatch(
        tokens=tensor(batch.tokens, torch.int64),
        targets=tensor(batch.targets, torch.from_numpy(batch.targets[:0]).dtype),
        loss_weights=tensor(batch.loss_weights, torch.float32),
        document_ids=tensor(batch.document_ids, torch.int32),
    )


class Feeder:
    """Reads the batches of coming steps in a thread, so that the step path finds them ready.

    With `one_shape`, and rows of one length, micro-batches have the same shape at every step, as compiled layers need
    it: torch makes a form for any size of what was seen in two, so that what a step computes would depend on the steps
    made in its process.
    """

    def __init__(
        self,
        batch_indices: Callable[[int], npt.NDArray[np.int64]],
        read: Callable[[npt.NDArray[np.int64]], Batch],
        lengths: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]] | None = None,
        *,
        topology: Topology,
        micro_batch_size: int,
        one_shape: bool,
        document_mask: bool,
        dropout_seed: int | None,
        first_step: int,
        last_step: int,
    ) -> None:
        self._batch_indices = batch_indices
        self._read = read
        self._lengths = lengths
        self._topology = topology
        self._micro_batch_size = micro_batch_size
        self._one_shape = one_shape
        self._document_mask = document_mask
        self._dropout_seed = dropout_seed
        self._steps = range(first_step, last_step + 1)
        self._ready: queue.Queue[RankBatch | BaseException | None] = queue.Queue(maxsize=_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feeder", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[RankBatch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def batch(self, step: int) -> RankBatch:
        """Read one step's batch here and now."""
        indices, here = self._batch_indices(step), self._topology
        rows = rows_of_rank(
            indices,
            here.rank,
            here.world_size,
            self._micro_batch_size,
            one_shape=self._one_shape,
            lengths=None if self._lengths is None else self._lengths(indices),
        )
        batches = [self._read(part) for part in rows]
        micro_batches = tuple(self._on_device(step, *each) for each in zip(batches, rows, strict=True))
        weight_sum = float(sum(part.loss_weights.sum(dtype=np.float64) for part in batches))
        return RankBatch(step, micro_batches, weight_sum, rows.reshape(-1))

    def close(self) -> None:
        """Stop reading ahead."""
        self._closed.set()

    def _on_device(self, step: int, batch: Batch, indices: npt.NDArray[np.int64]) -> MicroBatch:
        made = to_device(batch, self._topology.device)
        if not self._document_mask:
            made = replace(made, document_ids=None)
        if self._dropout_seed is not None:
            keys = row_keys(self._dropout_seed, step, torch.from_numpy(indices))
            made = replace(made, dropout_keys=keys.to(made.tokens.device))
        return made

    def _work(self) -> None:
        try:
            for step in self._steps:
                if not self._put(self.batch(step)):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the loop, which raises it
            self._put(error)

    def _put(self, item: RankBatch | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
