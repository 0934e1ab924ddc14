"""Proof that an exported directory computes what the model computes: transformers' logits beside ours.

Legend: B batch, T sequence, V vocabulary, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm.config import ModelConfig
from llm.errors import ProofError
from llm.experts import Router
from llm.hugging_face.configuration import CONFIG_FILE, read_config, read_json_object
from llm.hugging_face.tensors import pieces
from llm.transformer import Transformer

LARGEST_DIFFERENCE = 1e-4
"""Of the scale of the logits. fp32 products summed in another order differ by some 1e-6 of it, a wrong convention by
tenths."""
_CLEAR = 1e-5
"""Of the scale of a token's router logits: experts that lie closer may be swapped by rounding, and the token and those
after it then differ by far more. Through 16 layers of 64 experts those logits differ by 1e-6, at most 3e-6."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far the logits of both sides are apart."""

    positions: int
    """Positions compared, each over the whole vocabulary. In a model with experts a sequence counts up to where two are
    so close that rounding decides between them."""
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
    differences, squares, positions = [0.0], 0.0, 0
    for row_T in tokens_BT:
        ours_TV, theirs_TV = _both_logits(directory, model, twin, row_T)
        if not len(ours_TV):
            continue
        positions += len(ours_TV)
        differences.append((ours_TV - theirs_TV).abs().max().item())
        squares += (theirs_TV - theirs_TV.mean(dim=-1, keepdim=True)).double().square().mean(dim=-1).sum().item()
    if positions == 0:
        raise ProofError(
            f"nothing of {directory} could be compared: in every sequence experts of the first token are so close, "
            f"within {_CLEAR:g} of the scale of their router's logits, that rounding decides between them. Train the "
            "model on, or compare on other text."
        )
    scale = math.sqrt(squares / positions)
    largest = max(differences)
    relative = largest / scale if scale else math.inf if largest else 0.0
    if relative > LARGEST_DIFFERENCE:
        raise ProofError(
            f"transformers computes other logits from {directory} than the model that was exported: they differ by up "
            f"to {largest:.3g}, {relative:.3g} of their scale {scale:.3g}, over {positions} positions, and the "
            f"rule is at most {LARGEST_DIFFERENCE:g} of it. Do not use the export, and report both configurations."
        )
    return Proof(positions=positions, largest_difference=largest, logit_scale=scale, relative_difference=relative)


def _both_logits(directory: Path, model: Transformer, twin: Any, row_T: Tensor) -> tuple[Tensor, Tensor]:
    """Ours and transformers' of the positions of one sequence that can be compared."""
    with torch.inference_mode():
        ours_TV, clear = _our_logits(model, row_T)
        theirs_TV = twin(input_ids=row_T[None], use_cache=False).logits[0]
    if not (torch.isfinite(ours_TV).all() and torch.isfinite(theirs_TV).all()):
        raise ProofError(
            f"the logits of {directory} or of the model itself are not finite: nothing can be compared. "
            "Take an earlier checkpoint."
        )
    return ours_TV[:clear], theirs_TV[:clear]


def _our_logits(model: Transformer, row_T: Tensor) -> tuple[Tensor, int]:
    """Logits of one sequence, and up to which position every router's choice is clear."""
    chosen = model.config.num_experts_per_tok
    clear_T = torch.ones(len(row_T), dtype=torch.bool)

    def watch(_router: nn.Module, _inputs: Any, logits_BTE: Tensor) -> None:
        logits_TE = logits_BTE[0].sort(dim=-1, descending=True).values
        gap_T = logits_TE[:, chosen - 1] - logits_TE[:, chosen]
        clear_T.logical_and_(gap_T > _CLEAR * logits_TE.square().mean(dim=-1).sqrt())

    routers = [module for module in model.modules() if isinstance(module, Router) and len(module.weight) > chosen]
    hooks = [router.register_forward_hook(watch) for router in routers]
    logits_TV = model.logits(row_T[None])[0]
    for hook in hooks:
        hook.remove()
    return logits_TV, int(clear_T.cumprod(dim=0).sum())


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
        for piece in pieces(read_config(directory).family.names, config):
            if piece.parameter != name:
                name = piece.parameter
                parameter = read(name).to("cpu", torch.float32)
            piece.fill(parameters[name], piece.to_theirs(parameter, dtype))
    return model
