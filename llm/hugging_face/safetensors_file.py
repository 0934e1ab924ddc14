"""safetensors files written one tensor after the other: the library's own writer wants all of a file in memory at once.

Format: 8 bytes little-endian length of the header, the header (JSON: name -> dtype, shape, range of bytes), the numbers
(https://huggingface.co/docs/safetensors, section Format). Read back by the library in every test.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNMENT = 8


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write a file and make it durable; one tensor is held at a time.

    Args:
        path: Created, or overwritten.
        shapes: Shape of every tensor by its name, in the order in which they come.
        dtype: Of all of them, one of `DTYPES`.
        tensors: Exactly those, contiguous, on the CPU.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for (expected, shape), (name, tensor) in zip(shapes.items(), tensors, strict=True):
            assert (name, tuple(tensor.shape), tensor.dtype) == (expected, shape, dtype), f"{name} is not {expected}"
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
