"""Text, one token at a time: sampling from the model's distribution with a key/value cache.

Legend: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.accounting import vocabulary_size
from llm.config import STRICT
from llm.errors import GenerationError
from llm.kv_cache import KeyValueCache
from llm.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen. Filters apply in this order: temperature, top_k, top_p."""

    __pydantic_config__ = STRICT

    max_new_tokens: int = 128
    """Tokens to generate at most."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Keep only so many of the likeliest tokens; null keeps all."""
    top_p: float | None = None
    """Keep the fewest likeliest tokens whose probabilities reach this (arXiv:1904.09751); null keeps all."""
    seed: int = 0
    """The same seed, prompt and weights give the same text on the same device."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens is {self.max_new_tokens}: there is nothing to do. Use at least 1.")
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


def generate(
    model: Transformer, prompt_tokens: Sequence[int], sampling: SamplingConfig, stop_token: int | None = None
) -> Iterator[int]:
    """Continue a prompt, yielding each token as soon as it is chosen.

    Args:
        model: A whole model; its parameters say on which device the work is done.
        prompt_tokens: Token ids, at least one (the beginning-of-text token will do).
        sampling: How to choose.
        stop_token: Ends the text when chosen, and is not yielded.

    Returns:
        An iterator of at most `max_new_tokens` token ids.

    Raises:
        GenerationError: The prompt is empty or holds a token that the model does not have.
    """
    vocab_size = vocabulary_size(model.config)
    if not prompt_tokens:
        raise GenerationError(
            "the prompt has no tokens: the model needs one to predict the next. Begin with the tokenizer's BOS token."
        )
    for position, token in enumerate(prompt_tokens):
        if not 0 <= token < vocab_size:
            raise GenerationError(
                f"prompt token {token} at position {position} is outside the model's vocabulary of "
                f"{vocab_size}. Encode the prompt with the tokenizer that the model was trained with."
            )
    generator = torch.Generator(device="cpu").manual_seed(sampling.seed)
    cache = KeyValueCache(model.config.num_hidden_layers)
    return continue_tokens(
        list(prompt_tokens),
        scores=lambda new_tokens: _next_logits(model, new_tokens, cache),
        choose=lambda logits_V: choose_token(logits_V, sampling, generator),
        max_new_tokens=sampling.max_new_tokens,
        stop_token=stop_token,
    )


def continue_tokens(
    prompt_tokens: list[int],
    *,
    scores: Callable[[list[int]], Tensor],
    choose: Callable[[Tensor], int],
    max_new_tokens: int,
    stop_token: int | None,
) -> Iterator[int]:
    """Continue a prompt through any model and any choice, yielding each token as soon as it is chosen.

    Args:
        prompt_tokens: Token ids, at least one.
        scores: Takes the tokens that are new to the model, returns the logits after the last. Shape: (V,).
        choose: Takes such logits, returns a token.
        max_new_tokens: Tokens at most.
        stop_token: Ends the text when chosen, and is not yielded.
    """
    new_tokens = prompt_tokens
    for _ in range(max_new_tokens):
        token = choose(scores(new_tokens))
        if token == stop_token:
            return
        yield token
        new_tokens = [token]


def choose_token(logits_V: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Choose one token from the scores of a position.

    Args:
        logits_V: Any floating dtype and device; the choice is made in fp32 on the CPU.
        sampling: How to choose.
        generator: On the CPU; advanced by one draw unless the choice is greedy.

    Raises:
        GenerationError: The scores are not finite.
    """
    scores_V = logits_V.float().cpu()
    if not torch.isfinite(scores_V.max()):  # a maximum passes a NaN on
        raise GenerationError(
            f"the model's scores of the next token are not finite (their maximum is {scores_V.max().item()}): no token "
            "can be chosen. Its training has diverged; take an earlier checkpoint."
        )
    if sampling.temperature == 0:
        return int(scores_V.argmax())
    scores_V, tokens_V = (scores_V / sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k is not None:
        scores_V = scores_V[: sampling.top_k]
    probabilities_V = scores_V.softmax(dim=-1)
    if sampling.top_p is not None:
        before_V = probabilities_V.cumsum(dim=-1) - probabilities_V
        probabilities_V = probabilities_V.where(before_V < sampling.top_p, 0.0)
    chosen = torch.multinomial(probabilities_V, num_samples=1, generator=generator)
    return int(tokens_V[chosen])


# A decorator and not a `with` around the loop: between two yields the caller keeps its own gradient mode.
@torch.no_grad()
def _next_logits(model: Transformer, tokens: list[int], cache: KeyValueCache) -> Tensor:
    device = model.model.embed_tokens.weight.device
    logits_BTV = model.logits(torch.tensor([tokens], device=device), cache=cache)
    return logits_BTV[0, -1]
