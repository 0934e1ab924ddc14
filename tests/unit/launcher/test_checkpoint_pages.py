"""What people read of checkpoints and of what is made of them."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from launcher.checkpoint_pages import export_table

EXPORTED: dict[str, Any] = {
    "conversations_compared": None,
    "directory": "out",
    "step": 400,
    "model_type": "llama",
    "dtype": "float32",
    "weight_files": ["model.safetensors"],
    "weight_bytes": 4096,
    "proof": {"positions": 512, "relative_difference": 1e-6},
    "proven_on": "16 x 32 tokens",
    "tokens_compared": 700,
}


def shown(facts: dict[str, Any]) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(export_table(facts))
    return captured.get()


@pytest.mark.parametrize("left_out", [{}, {"embedding_dropout": 0.1, "residual_dropout": 0.25}])
def test_export_says_which_dropout_it_leaves_out(left_out: dict[str, float]) -> None:
    page = shown(EXPORTED | {"left_out": left_out})
    said = "embedding_dropout 0.1, residual_dropout 0.25: the family has no word for it, and it matters in training"
    assert (said in page) == bool(left_out)
    assert ("left out" in page) == bool(left_out)
