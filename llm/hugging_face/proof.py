"""Proof that an exported directory computes what the model computes: transformers' logits beside ours.

Legend: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.config import ModelConfig
from llm.errors import ProofError
from llm.hugging_face.configuration import CONFIG_FILE, read_config, read_json_object
from llm.hugging_face.tensors import pieces
from llm.transformer import Transformer

LARGEST_DIFFERENCE = 1e-4
"""Of the scale of the logits. fp32 products summed in another order differ by some 1e-6 of it, a wrong convention by
tenths."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far the logits of both sides are apart."""

    positions: int
    """Positions compared, each over the whole vocabulary."""
    largest_difference: float
    """max |ours - theirs|."""
    logit_scale: float
    """Root mean square of theirs, less each position's mean, which no probability depends on."""
    relative_difference: float
    """The former over the latter."""


def prove_export(directory: Path, config: ModelConfig, read: Callable[[str], Tensor], tokens_BT: Tensor) -> Proof:
    """Load an export with transformers and compare its logits with those of the model it was made of, on the CPU.

    Both compute in fp32. Ours has the numbers that `read` gives, rounded as the file's are; so what is proven of an
    export in bf16 is that it holds the model's weights to bf16's precision and means the same by them. Both models are
    in memory together.

    Args:
        directory: The export.
        config: Of the model that was exported.
        read: Gives its parameters by name.
        tokens_BT: int64 token ids to compare on; of real text, some hundred positions will do.

    Raises:
        ProofError: The logits differ by more than `LARGEST_DIFFERENCE` of their scale, or transformers is not
            installed.
    """
    twin = _load_with_transformers(directory)
    model = _load_ours(directory, config, read)
    differences, squares = [0.0], 0.0
    for row_T in tokens_BT:
        with torch.inference_mode():
            ours_TV = model.logits(row_T[None])[0]
            theirs_TV = twin(input_ids=row_T[None], use_cache=False).logits[0]
        if not (torch.isfinite(ours_TV).all() and torch.isfinite(theirs_TV).all()):
            raise ProofError(
                f"the logits of {directory} or of the model itself are not finite: nothing can be compared. "
                "Take an earlier checkpoint."
            )
        differences.append((ours_TV - theirs_TV).abs().max().item())
        squares += (theirs_TV - theirs_TV.mean(dim=-1, keepdim=True)).double().square().mean(dim=-1).sum().item()
    scale = math.sqrt(squares / tokens_BT.numel())
    largest = max(differences)
    relative = largest / scale if scale else math.inf if largest else 0.0
    if relative > LARGEST_DIFFERENCE:
        raise ProofError(
            f"transformers computes other logits from {directory} than the model that was exported: they differ by up "
            f"to {largest:.3g}, {relative:.3g} of their scale {scale:.3g}, over {tokens_BT.numel()} positions, and the "
            f"rule is at most {LARGEST_DIFFERENCE:g} of it. Do not use the export, and report both configurations."
        )
    return Proof(
        positions=tokens_BT.numel(), largest_difference=largest, logit_scale=scale, relative_difference=relative
    )


def _load_with_transformers(directory: Path) -> Any:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ProofError(
            f"{directory} was not compared with transformers, which is not installed here. Install it "
            "(python -m pip install 'longhaul[export]')."
        ) from error
    # Eager is the only implementation that honours soft caps.
    twin: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return twin.eval()


def _load_ours(directory: Path, config: ModelConfig, read: Callable[[str], Tensor]) -> Transformer:
    dtype = getattr(torch, read_json_object(directory / CONFIG_FILE)["dtype"])
    model = Transformer(config, "eager").eval()
    parameters = dict(model.named_parameters())
    name, parameter = "", torch.empty(0)
    with torch.no_grad():
        for piece in pieces(read_config(directory).family, config):
            if piece.parameter != name:
                name = piece.parameter
                parameter = read(name).to("cpu", torch.float32)
            piece.fill(parameters[name], piece.to_theirs(parameter, dtype))
    return model
