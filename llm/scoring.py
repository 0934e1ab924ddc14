"""How likely a model finds a given text: each token of a long one once, or what continues a context.

Legend: B batch, T sequence, N scored positions, C of them in a chunk, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llm.errors import ScoringError
from llm.memory import loss_chunk_rows
from llm.transformer import Transformer

Encode = Callable[[str], Sequence[int]]
"""Gives the token ids of a text, without special tokens."""


class Window(NamedTuple):
    """A stretch of a text that the model reads at once. Numbers are positions of tokens in the text."""

    start: int
    """First token read."""
    stop: int
    """Token after the last one read: the last one predicted."""
    first_target: int
    """First token whose prediction counts; those before it count in an earlier window."""


class Passage(NamedTuple):
    """Tokens of which the last ones are scored, each given all before it."""

    tokens: Sequence[int] | NDArray[np.integer]
    """The first is read only, the last is predicted only."""
    scored: int
    """How many of the last ones count."""


class TargetScores(NamedTuple):
    """Of every token that counts, in order."""

    losses: NDArray[np.float32]
    """-ln P(token | those before it). Shape: (N,)."""
    ranks: NDArray[np.int64]
    """How many tokens the model finds likelier: 0 for its first guess. Shape: (N,)."""

    @property
    def log_probability(self) -> float:
        """Of all of them together, summed in double precision."""
        return -float(self.losses.sum(dtype=np.float64))

    @property
    def greedy(self) -> bool:
        """Whether each is the model's first guess."""
        return not self.ranks.any()


def sliding_windows(tokens: int, context: int, stride: int) -> list[Window]:
    """Windows of a text that predict every token but the first, and count each once.

    Window k reads `context` tokens from k * stride on, and the tokens count that no window before has predicted: all
    of the first one's, then the last `stride`. Whatever lies behind the first window is thus predicted from more than
    context - stride tokens. It is the loop of https://huggingface.co/docs/transformers/perplexity with
    max_length = context + 1, since there the last token of a window is not read to predict another.

    Args:
        tokens: Length of the text.
        context: Tokens that the model reads at once.
        stride: Tokens by which the next window begins later; `context` lets windows not overlap.

    Raises:
        ScoringError: A token would never count, or no window moves on.
    """
    if not 1 <= stride <= context:
        raise ScoringError(
            f"the windows' stride is {stride} and they read {context} tokens: tokens between two windows would not be "
            f"scored, or the windows would not move on. Use a stride of 1 to {context}."
        )
    windows: list[Window] = []
    first_target = 1
    while first_target < tokens:
        start = len(windows) * stride
        stop = min(start + context, tokens - 1)
        windows.append(Window(start, stop, first_target))
        first_target = stop + 1
    return windows


def window_passages(tokens: NDArray[np.integer], windows: Sequence[Window]) -> list[Passage]:
    """The tokens of each window, as views of the text's."""
    return [Passage(tokens[w.start : w.stop + 1], w.stop + 1 - w.first_target) for w in windows]


def encode_pair(encode: Encode, context: str, continuation: str, bos: int) -> tuple[list[int], list[int]]:
    """Token ids of a context and of what continues it, cut where lm-eval cuts them (`TemplateLM._encode_pair`).

    Spaces at the end of the context go to the continuation, because tokenizers join a space with the word behind it.
    The continuation is what the ids of both together have more than those of the context.

    Args:
        encode: Of the model's tokenizer.
        context: May be empty; then the beginning-of-text token is all that is read.
        continuation: What is scored.
        bos: Beginning-of-text token, which comes before every context.

    Returns:
        Ids of the context, at least one, and of the continuation; these are none where the tokenizer joins all of it
        with the context.
    """
    kept = context.rstrip()
    whole = [int(token) for token in encode(context + continuation)]
    before = [int(token) for token in encode(kept)]
    return [bos, *before], whole[len(before) :]


def continuation_passage(context: Sequence[int], continuation: Sequence[int], context_tokens: int) -> Passage:
    """A continuation to be scored; where both are too long for the model the context loses its beginning.

    Args:
        context: Ids, at least one.
        continuation: Ids, at least one.
        context_tokens: Tokens that the model reads at once.

    Raises:
        ScoringError: There is nothing to score, or it alone is too long.
    """
    if not context or not 1 <= len(continuation) <= context_tokens:
        raise ScoringError(
            f"a continuation of {len(continuation)} tokens is to be scored after {len(context)}, and the model reads "
            f"{context_tokens} at once: it takes at least one of either, and the continuation must fit whole. Shorten "
            "the continuation."
        )
    return Passage([*context, *continuation][-(context_tokens + 1) :], len(continuation))


def score_passages(model: Transformer, passages: Sequence[Passage], *, batch_tokens: int) -> list[TargetScores]:
    """Score passages in batches of like lengths; the scores of each are those that it would have alone, up to rounding.

    Args:
        model: A whole model; its parameters say on which device the work is done.
        passages: In any order. Those that differ in the last token alone are read once, as choices of one token are.
        batch_tokens: Positions of a batch at most, padding among them; one passage always goes.

    Returns:
        In the order of the passages.
    """
    scores: dict[int, TargetScores] = {}
    device = model.model.embed_tokens.weight.device
    for rows in _batches(_rows(passages), batch_tokens):
        numbers = [number for row in rows for number in row.passages]
        tokens_BT, *places, targets_N = (torch.from_numpy(array).to(device) for array in _arrays(rows, passages))
        found = score_targets(model, tokens_BT, places, targets_N)
        ends = np.cumsum([passages[number].scored for number in numbers])[:-1]
        parts = zip(np.split(found.losses, ends), np.split(found.ranks, ends), strict=True)
        scores |= {number: TargetScores(*part) for number, part in zip(numbers, parts, strict=True)}
    return [scores[number] for number in range(len(passages))]


class _Row(NamedTuple):
    """What is read at once."""

    read: NDArray[np.int64]
    passages: list[int]
    """Numbers of those that read it."""


def _rows(passages: Sequence[Passage]) -> list[_Row]:
    """Everything that is read, once each, the longest first: what memory does not bear fails at once."""
    rows: dict[bytes, _Row] = {}
    for number, passage in enumerate(passages):
        read = np.asarray(passage.tokens[:-1], dtype=np.int64)
        rows.setdefault(read.tobytes(), _Row(read, [])).passages.append(number)
    return sorted(rows.values(), key=lambda row: -len(row.read))


def _batches(rows: Sequence[_Row], batch_tokens: int) -> Iterator[Sequence[_Row]]:
    start = 0
    while start < len(rows):
        count = max(1, batch_tokens // len(rows[start].read))
        yield rows[start : start + count]
        start += count


def _arrays(rows: Sequence[_Row], passages: Sequence[Passage]) -> list[NDArray[np.int64]]:
    """Tokens of a batch; row and column of the token that each target follows; the targets, row after row."""
    tokens_BT = np.zeros((len(rows), len(rows[0].read)), np.int64)
    row_N, column_N, targets_N = [], [], []
    for index, (read, numbers) in enumerate(rows):
        tokens_BT[index, : len(read)] = read  # padding comes after: causal attention keeps it from what is scored
        for tokens, scored in (passages[number] for number in numbers):
            row_N.append(np.full(scored, index))
            column_N.append(np.arange(len(read) - scored, len(read)))
            targets_N.append(np.asarray(tokens[-scored:], dtype=np.int64))
    return [tokens_BT, np.concatenate(row_N), np.concatenate(column_N), np.concatenate(targets_N)]


@torch.inference_mode()
def score_targets(
    model: Transformer,
    tokens_BT: Tensor,
    places: Sequence[Tensor],
    targets_N: Tensor,
    document_ids_BT: Tensor | None = None,
) -> TargetScores:
    """Loss and rank of targets; logits are made where there is one, a chunk at a time.

    Args:
        model: A whole model.
        tokens_BT: int64 token ids.
        places: Row and column of the token that each target follows, int64. Shape: (N,) each.
        targets_N: int64 token ids.
        document_ids_BT: Equal integers for tokens of one document, which then see only each other.
    """
    hidden_BTD, _ = model.model(tokens_BT, document_ids_BT)
    hidden_ND, targets_N1 = hidden_BTD[tuple(places)], targets_N[:, None]
    weight_VD = model.model.embed_tokens.weight if model.lm_head is None else model.lm_head.weight
    rows = loss_chunk_rows(*weight_VD.shape)
    losses, ranks = [], []
    for start in range(0, len(hidden_ND), rows):
        part = slice(start, start + rows)
        logits_CV = model.rule.logits(F.linear(hidden_ND[part], weight_VD).float())
        target_logits_C1 = logits_CV.gather(1, targets_N1[part])
        losses.append(logits_CV.logsumexp(dim=1) - target_logits_C1[:, 0])
        ranks.append((~(logits_CV <= target_logits_C1)).sum(dim=1))  # what is no number is nobody's first guess
    if not losses:
        return TargetScores(np.empty(0, np.float32), np.empty(0, np.int64))
    return TargetScores(torch.cat(losses).cpu().numpy(), torch.cat(ranks).cpu().numpy())
