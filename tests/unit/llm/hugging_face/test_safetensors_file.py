"""safetensors files written by hand are what the library writes and reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from llm.hugging_face.safetensors_file import write_safetensors


def some_tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"b": (3, 5), "a": (7,), "c.weight": (1, 2, 3)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_reads_the_same_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = some_tensors(dtype)
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {name: tuple(t.shape) for name, t in tensors.items()}, dtype, tensors.items())
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == dtype for name, tensor in tensors.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_file_is_refused_when_other_tensors_come_than_were_announced(tmp_path: Path) -> None:
    tensors = some_tensors(torch.float32)
    with pytest.raises(AssertionError, match="b is not a"):
        write_safetensors(tmp_path / "x", {"a": (3, 5)}, torch.float32, [("b", tensors["b"])])
