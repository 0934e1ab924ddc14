"""What the ways of attention have in common: what a mask is made of, how scores become weights, what each way offers.

Legend: B batch, T query positions, S key positions, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llm.dropout import Dropout

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Visibility(NamedTuple):
    """Which keys each query sees. A backend makes its mask of it, once per forward pass and window."""

    query_length: int
    """T; the queries are the last T of the S key positions, the rest sits in a cache."""
    key_length: int
    """S, at least T."""
    document_ids_BS: Tensor | None  # noqa: N815 - tensors are named with their shape
    """Equal integers for tokens of one document: a query sees keys of its own document alone. None is one document.
    The padding of batched prompts is a document of its own."""
    window: int | None
    """A query at position i sees keys j with i - window < j <= i, as Hugging Face counts `sliding_window`; at least 1.
    None is all before."""
    dtype: torch.dtype
    """Of the queries."""
    device: torch.device


class ScoreRule(NamedTuple):
    """How scores become weights."""

    scale: float
    """Scores are scale * q.k, mostly with K ** -0.5."""
    softcap: float | None
    """Then softcap * tanh(scores / softcap) (arXiv:2408.00118, section 2); None leaves them."""
    dropout: Dropout | None = None
    """Which weights are dropped, and the others scaled up; None outside training."""


class DocumentTiles(NamedTuple):
    """The visible part of the square of scores as causal rectangles; see `llm.attention.document_tiles`.

    All integers are int64. Tables of numbers and not lists: what walks over a module's inputs is soon past them.
    """

    tiles: Tensor
    """Calls on views: first row, end row, first key, first query, end of both, 1 if banded. Shape: (tiles, 6)."""
    groups: Tensor
    """Calls on copies: documents, padded length. Shape: (groups, 2)."""
    gather: Tensor
    """Positions, counted through the batch, that are copied: group by group, each document padded. Shape: (N,)."""
    kept: Tensor
    """Which of the copies are no padding."""
    target: Tensor
    """Positions that those are copies of."""
    band: Tensor | None
    """Bias of the banded tiles: 0 where a query sees a key, -inf elsewhere."""


class PackedDocuments(NamedTuple):
    """Documents of all rows behind each other, for kernels that are told where each begins."""

    query_starts: Tensor
    """First query of each document, and the end of the last. Shape: (documents + 1,), int32."""
    key_starts: Tensor
    """The same of the keys."""
    longest_query: int
    """In tokens."""
    longest_key: int


class AttentionMask(NamedTuple):
    """What a backend made of a `Visibility`, shared by all layers. Each backend reads its own fields.

    A tuple of tuples and tensors: wrappers that walk over a module's inputs know what to do with it.
    """

    is_causal: bool
    """The plain causal triangle over T = S positions, which kernels know without being shown it."""
    bias: Tensor | None = None
    """Added to the scores: 0 where a query sees a key, -inf elsewhere. Shape: (B or 1, 1, T, S).

    While `is_causal` is False and all other fields are None, every query sees every key.
    """
    tiles: DocumentTiles | None = None
    packed: PackedDocuments | None = None
    window: int | None = None
    """Of `packed`: see `Visibility`."""
    block_mask: Callable[[], BlockMask] | None = None
    """Gives FlexAttention's mask. In a function, because DeepSpeed warns of a class that it does not know."""


Attend = Callable[[Tensor, Tensor, Tensor, AttentionMask, ScoreRule], Tensor]
"""attend(q_BTHK, k_BSGK, v_BSGK, mask, rule) -> BTHK in the dtype of q. G divides H, and keys are copied out for
each head only where no kernel shares them."""


class Backend(NamedTuple):
    """One way of attention."""

    name: str
    prepare: Callable[[Visibility], AttentionMask]
    attend: Attend


@dataclass(frozen=True, kw_only=True)
class AttentionNeeds:
    """What a model and its run ask of attention, from which `resolve_attention` chooses or refuses."""

    device_type: str
    """`cpu` or `cuda`."""
    head_size: int
    """K."""
    training: bool
    """Gradients are wanted."""
    documents: bool = False
    """Batches come with document ids."""
    window: bool = False
    """Some layer has a sliding window."""
    softcap: bool = False
    """Scores are capped."""
    dropout: bool = False
    """Weights are dropped in training."""
    dtype: torch.dtype = torch.float32
    """Of queries as the kernel gets them: under autocast the narrower."""


class ResolvedAttention(NamedTuple):
    """The backend that will run, and why."""

    name: str
    reason: str
