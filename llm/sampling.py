"""How the next token of each row is chosen: a penalty, filters, and draws that the rest of a batch does not change.

Legend: B batch, V vocabulary, C candidates in the order of their scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.config import STRICT
from llm.errors import GenerationError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen, applied in the order of Hugging Face: repetition_penalty, temperature, filters."""

    __pydantic_config__ = STRICT

    max_new_tokens: int = 128
    """Tokens to generate at most."""
    repetition_penalty: float = 1.0
    """Logits of tokens in the prompt and the text so far are divided by this, negative ones multiplied (CTRL,
    arXiv:1909.05858, which takes 1.2); 1 leaves them, less invites repetition."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Keep only so many of the likeliest tokens; null keeps all."""
    top_p: float | None = None
    """Keep the fewest likeliest tokens whose probabilities reach this (arXiv:1904.09751); null keeps all."""
    min_p: float | None = None
    """Keep tokens of at least this fraction of the likeliest one's probability (arXiv:2407.01082); null keeps all."""
    seed: int = 0
    """The same seed, prompt and weights give the same text on the same device, whatever other prompts there are."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens is {self.max_new_tokens}: there is nothing to do. Use at least 1.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise GenerationError(
                f"repetition_penalty is {self.repetition_penalty}: logits cannot be divided by it. "
                "Use a finite number above 0; 1 means no penalty."
            )
        if not 0 <= self.temperature < float("inf"):
            raise GenerationError(
                f"temperature is {self.temperature}: logits cannot be divided by it. "
                "Use a finite number of at least 0; 0 means the likeliest token."
            )
        if self.top_k is not None and self.top_k < 1:
            raise GenerationError(f"top_k is {self.top_k}: no token would be left. Use at least 1, or null for all.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise GenerationError(
                f"top_p is {self.top_p}: it is a sum of probabilities, above 0 and at most 1. Use null for all tokens."
            )
        if self.min_p is not None and not 0 < self.min_p <= 1:
            raise GenerationError(
                f"min_p is {self.min_p}: it is a fraction of the likeliest token's probability, above 0 and at most 1. "
                "Use null for all tokens."
            )


class TokenChooser:
    """Chooses a token for each row, which draws from a generator of its own.

    So a row's text depends on its scores and its key, not on the rows beside it or on those that have ended.

    Args:
        sampling: How to choose, for all rows.
        prompts: Token ids of every row, which the penalty counts as repeated.
        keys: What each row's draws follow; `prompt_key` makes one of a seed.
        vocab_size: Only tokens below this are chosen: a model may have more rows than its tokenizer has pieces.
    """

    def __init__(
        self, sampling: SamplingConfig, prompts: Sequence[Sequence[int]], keys: Sequence[int], vocab_size: int
    ) -> None:
        self._sampling = sampling
        self._vocab_size = vocab_size
        self._generators = [torch.Generator(device="cpu").manual_seed(key) for key in keys]
        self._seen_NV: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen_NV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                self._seen_NV[row, [token for token in prompt if token < vocab_size]] = True

    def choose(self, logits_BV: Tensor, rows: list[int]) -> list[int]:
        """Choose the next token of some rows.

        Args:
            logits_BV: Any floating dtype and device; the choice is made there, in fp32.
            rows: Which of the rows these are. A row's generator advances by one draw unless the choice is greedy.

        Raises:
            GenerationError: The scores of a row are not finite.
        """
        scores_BV = logits_BV[:, : self._vocab_size].float()
        _require_finite(scores_BV)
        if self._seen_NV is not None:
            seen_BV = self._seen_NV[rows].to(scores_BV.device)
            scores_BV = penalised(scores_BV, seen_BV, self._sampling.repetition_penalty)
        if self._sampling.temperature == 0:
            chosen_B = scores_BV.argmax(dim=-1)
        else:
            chosen_B = drawn(*candidates(scores_BV, self._sampling), self._uniforms(rows))
        tokens: list[int] = chosen_B.tolist()
        if self._seen_NV is not None:
            self._seen_NV[rows, tokens] = True
        return tokens

    def _uniforms(self, rows: list[int]) -> Tensor:
        generators = (self._generators[row] for row in rows)
        return torch.stack([torch.rand((), dtype=torch.float64, generator=each) for each in generators])


def penalised(scores_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen less likely: CTRL's penalty, with negative scores multiplied as Hugging Face does."""
    lowered_BV = torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return torch.where(seen_BV, lowered_BV, scores_BV)


def candidates(scores_BV: Tensor, sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn.

    Returns:
        Their weights, not summing to one and 0 where filtered, and the tokens; the likeliest first. Shape: (B, C) each.
    """
    scores_BC, tokens_BC = (scores_BV / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        scores_BC, tokens_BC = scores_BC[:, : sampling.top_k], tokens_BC[:, : sampling.top_k]
    probabilities_BC = scores_BC.softmax(dim=-1)
    weights_BC = probabilities_BC
    if sampling.top_p is not None:
        before_BC = probabilities_BC.cumsum(dim=-1) - probabilities_BC
        weights_BC = weights_BC.where(before_BC < sampling.top_p, 0.0)
    if sampling.min_p is not None:
        weights_BC = weights_BC.where(probabilities_BC >= sampling.min_p * probabilities_BC[:, :1], 0.0)
    return weights_BC, tokens_BC


def drawn(weights_BC: Tensor, tokens_BC: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token of each row at whose place the weights' running sum passes its uniform number. Shape: (B,)."""
    sums_BC = weights_BC.double().cumsum(dim=-1)
    # Below the whole sum even when rounded, so that a token of weight 0 at the end is never reached.
    reached_B1 = uniforms_B[:, None].to(sums_BC.device) * sums_BC[:, -1:]
    places_B1 = torch.searchsorted(sums_BC, reached_B1, right=True)
    return tokens_BC.gather(-1, places_B1)[:, 0]


def prompt_key(seed: int, prompt: Sequence[int]) -> int:
    """What the draws of a prompt follow: of the seed and its tokens, so that two prompts do not share their luck."""
    digest = hashlib.sha256(f"{seed}/{','.join(str(token) for token in prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _require_finite(scores_BV: Tensor) -> None:
    highest_B = scores_BV.amax(dim=-1)  # a maximum passes a NaN on
    finite_B = highest_B.isfinite()
    if not finite_B.all():
        raise GenerationError(
            f"the model's scores of the next token are not finite (their maximum is {highest_B[~finite_B][0].item()}): "
            "no token can be chosen. Its training has diverged; take an earlier checkpoint."
        )
