"""Text, one token of every row at a time: prompts of any lengths in one batch, with a key/value cache.

Rows are aligned at their ends: the shorter are padded on the left, and padding is a document of its own, which no token
of the text sees. Legend: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llm.accounting import vocabulary_size
from llm.errors import GenerationError
from llm.kv_cache import KeyValueCache
from llm.model_config import ModelConfig
from llm.sampling import SamplingConfig, TokenChooser, prompt_key
from llm.transformer import Transformer

_PADDING, _TEXT = 0, 1
EndReason = Literal["stop_token", "stop_text", "max_new_tokens", "max_position_embeddings"]


class NewTokens(NamedTuple):
    """The tokens of a pass: those that a cache does not hold yet."""

    tokens: Tensor
    """int64; 0 where padded. Shape: (B, T), as all of them."""
    document_ids: Tensor | None
    """int64, padding apart from text; None where no row has padding."""
    positions: Tensor | None
    """int64, of each token from the start of its own row; None where no row has padding."""


Scores = Callable[[NewTokens, KeyValueCache], Tensor]
"""Runs the model over new tokens, adding them to the cache: logits after the last of each row. Shape: (B, V)."""
Choose = Callable[[Tensor, list[int]], list[int]]
"""Takes such logits and the numbers of their rows, returns a token for each."""


class Continuation:
    """Texts under way. Each `step` is one pass of the model; a row that has ended leaves the batch and its cache.

    Args:
        config: Shape of the model.
        prompts: Token ids of every row, checked by `check_prompts`.
        max_new_tokens: Tokens of a row at most; `max_position_embeddings` may end it before.
        stop_tokens: Any of them ends a row when chosen, and is no part of its text.
        scores: Runs the model.
        choose: Chooses tokens.
        device: Where the tokens go.
    """

    def __init__(
        self,
        config: ModelConfig,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_tokens: Collection[int],
        scores: Scores,
        choose: Choose,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows = list(range(len(prompts)))
        """Those that go on."""
        self.written: list[list[int]] = [[] for _ in prompts]
        """New tokens of every row."""
        self.ends: list[EndReason | None] = [None for _ in prompts]
        """Why each row has ended; None while it goes on."""
        self._limit = config.max_position_embeddings
        self._max_new_tokens = max_new_tokens
        self._stop_tokens = frozenset(stop_tokens)
        self._scores, self._choose = scores, choose
        self._device = device
        self._cache = KeyValueCache.of(config)
        self._held = list(self.rows)
        self._lengths = [len(prompt) for prompt in prompts]
        self._unread = [list(prompt) for prompt in prompts]
        self._padded = len(set(self._lengths)) > 1

    def step(self) -> dict[int, int]:
        """Go on by one token in every row of `rows`.

        Returns:
            The new token of each row that got one: not of those that chose a stop token.
        """
        self._leave()
        chosen = self._choose(self._scores(self._new_tokens(), self._cache), list(self.rows))
        new = {}
        for row, token in zip(list(self.rows), chosen, strict=True):
            if token in self._stop_tokens:
                self.end(row, "stop_token")
                continue
            new[row] = token
            self.written[row].append(token)
            self._unread[row] = [token]
            self._lengths[row] += 1
            if len(self.written[row]) == self._max_new_tokens:
                self.end(row, "max_new_tokens")
            elif self._lengths[row] == self._limit:
                self.end(row, "max_position_embeddings")
        return new

    def end(self, row: int, reason: EndReason) -> None:
        """End a row, or give another reason for its end; the token that it was given last stays written."""
        if row in self.rows:
            self.rows.remove(row)
        self.ends[row] = reason

    def finish(self) -> list[list[int]]:
        """Go on until every row has ended; returns `written`."""
        while self.rows:
            self.step()
        return self.written

    def _leave(self) -> None:
        if self.rows == self._held:
            return
        read = max(self._lengths[row] - len(self._unread[row]) for row in self.rows)
        self._cache.keep([self._held.index(row) for row in self.rows], first=self._cache.length - read)
        self._held = list(self.rows)

    def _new_tokens(self) -> NewTokens:
        T = max(len(self._unread[row]) for row in self.rows)
        tokens, documents, positions = [], [], []
        for row in self.rows:
            new, end = self._unread[row], self._lengths[row]
            padding = [0] * (T - len(new))
            tokens.append(padding + new)
            documents.append([_PADDING] * len(padding) + [_TEXT] * len(new))
            positions.append(padding + list(range(end - len(new), end)))
        if not self._padded:
            return NewTokens(self._tensor(tokens), None, None)
        return NewTokens(self._tensor(tokens), self._tensor(documents), self._tensor(positions))

    def _tensor(self, numbers: list[list[int]]) -> Tensor:
        return torch.tensor(numbers, device=self._device)


def continue_prompts(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    stop_tokens: Collection[int] = (),
    seeds: Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> Continuation:
    """Continue several prompts in one batch: the tokens of each are those that it would get alone, up to rounding.

    Args:
        model: A whole model; its parameters say on which device the work is done.
        prompts: Token ids of each row, at least one (the beginning-of-text token will do).
        sampling: How to choose.
        stop_tokens: Any of them ends a row when chosen, and is no part of its text.
        seeds: One for each row; None means `sampling.seed` for all. A row's draws follow its seed and its prompt.
        vocab_size: Only tokens below this are chosen; None means all that the model has.

    Raises:
        GenerationError: A prompt is empty, too long, or holds a token that the model does not have.
    """
    check_prompts(model.config, prompts)
    each = [sampling.seed] * len(prompts) if seeds is None else seeds
    keys = [prompt_key(seed, prompt) for seed, prompt in zip(each, prompts, strict=True)]
    chooser = TokenChooser(sampling, prompts, keys, vocab_size or vocabulary_size(model.config))
    return Continuation(
        model.config,
        prompts,
        max_new_tokens=sampling.max_new_tokens,
        stop_tokens=stop_tokens,
        scores=lambda new, cache: next_logits(model, new, cache),
        choose=chooser.choose,
        device=model.model.embed_tokens.weight.device,
    )


def generate(
    model: Transformer,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    *,
    stop_tokens: Collection[int] = (),
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Continue one prompt as `continue_prompts` does, yielding each token as soon as it is chosen."""
    text = continue_prompts(model, [prompt], sampling, stop_tokens=stop_tokens, vocab_size=vocab_size)
    return _tokens(text)


def _tokens(text: Continuation) -> Iterator[int]:
    while text.rows:
        yield from text.step().values()


# A decorator and not a `with` around the loop: between two tokens the caller keeps its own gradient mode.
@torch.no_grad()
def next_logits(model: Transformer, new: NewTokens, cache: KeyValueCache) -> Tensor:
    """Scores of the token after the last of each row, forward only. Shape: (B, V)."""
    return model.logits(new.tokens, new.document_ids, cache, new.positions, last_only=True)[:, -1]


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse prompts that a model cannot continue.

    Raises:
        GenerationError: One is empty, too long, or holds a token that the model does not have.
    """
    vocab_size, limit = vocabulary_size(config), config.max_position_embeddings
    for number, prompt in enumerate(prompts, start=1):
        name = "the prompt" if len(prompts) == 1 else f"prompt {number} of {len(prompts)}"
        if not prompt:
            raise GenerationError(
                f"{name} has no tokens: the model needs one to predict the next. Begin with the tokenizer's BOS token."
            )
        if limit is not None and len(prompt) >= limit:
            raise GenerationError(
                f"{name} has {len(prompt)} tokens, and model.max_position_embeddings is {limit}: the model knows no "
                f"position beyond, and there is no room for a new token. Shorten it to at most {limit - 1} tokens."
            )
        for position, token in enumerate(prompt):
            if not 0 <= token < vocab_size:
                raise GenerationError(
                    f"token {token} at position {position} of {name} is outside the model's vocabulary of "
                    f"{vocab_size}. Encode the prompt with the tokenizer that the model was trained with."
                )
