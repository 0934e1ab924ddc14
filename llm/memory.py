"""How many bytes the loss of a micro-batch and a cache of keys and values hold. Imports no torch: `plan` needs it.

Activations are counted in `llm.activation_memory`; the training state, which ranks may share, in `cluster`.
Legend: B batch, T sequence, D model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm.accounting import vocabulary_size
from llm.config import ModelConfig

Arithmetic = Literal["fp32", "bf16", "autocast"]
"""`bf16` computes and keeps everything in bf16; `autocast` computes products in bf16 over fp32 parameters and an fp32
residual stream."""

_LOSS_CHUNK_BYTES = 64 << 20
_LOSS_CHUNK_SHARE = 4
SHORT_ROW_TOKENS = 256
"""Rows up to this length get the bias of `sdpa` from `varlen` on the CPU: one call over the whole square costs no more
there than the plain triangle, and rectangles would save little. See tests/bench/attention.py."""
BAND_QUERIES = 128
"""Queries of one band of `varlen` on the CPU, at least as many as a short document has: larger ones read more hidden
keys, smaller ones are more calls."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One forward pass of training: how large it is and what computes it."""

    sequences: int
    """B."""
    seq_len: int
    """T, in tokens."""
    arithmetic: Arithmetic
    """Numbers that products are made of."""
    attention: str
    """Name of the backend, resolved; all but `eager` keep no T x T weights."""
    device_type: Literal["cpu", "cuda"] = "cpu"
    """CPUs widen bf16 logits before their softmax, keep statistics of layer norms in the dtype of their input, and cut
    rows into rectangles for `varlen`."""
    documents: bool = False
    """Documents are masked, so that `sdpa`, and `varlen` for short rows on CPUs, need a mask for each sequence."""
    copied_tokens: int = 0
    """Positions that `varlen` copies on CPUs, padding included: those of short documents in longer rows (see
    `llm.attention.document_tiles`)."""

    @property
    def tokens(self) -> int:
        """B T."""
        return self.sequences * self.seq_len

    @property
    def stream_bytes(self) -> int:
        """Of one number of the residual stream, which has the dtype of the parameters."""
        return 2 if self.arithmetic == "bf16" else 4

    @property
    def product_bytes(self) -> int:
        """Of one number that a matrix product gives."""
        return 4 if self.arithmetic == "fp32" else 2


@dataclass(frozen=True, kw_only=True)
class LossBytes:
    """What `llm.loss.linear_cross_entropy_sums` holds, or the head of another task."""

    kept: int
    """Both gradients, from the forward to the backward pass: of the hidden states, and of the output weight in fp32."""
    forward: int
    """Besides, while chunks are computed: the hidden states, and what becomes of a chunk's logits."""
    backward: int
    """Besides, in the backward pass: both gradients once more, scaled."""

    @property
    def peak(self) -> int:
        """The most at a time."""
        return self.kept + max(self.forward, self.backward)


def loss_chunk_rows(vocabulary: int, width: int) -> int:
    """Positions whose logits the loss holds at a time, V and D given.

    64 MiB of fp32 logits keep a matrix product busy. Each chunk also goes through the output weight twice and through
    its gradient, V x D both, once for reading and once for writing; D/4 rows bear that, and their logits take a
    quarter of what the gradient does.
    """
    return max(1, _LOSS_CHUNK_BYTES // (4 * vocabulary), width // _LOSS_CHUNK_SHARE)


def loss_bytes(config: ModelConfig, batch: MicroBatch, chunk_rows: int | None = None) -> LossBytes:
    """Bytes that the loss of one micro-batch holds.

    Args:
        config: Shape of the model.
        batch: Size of the micro-batch and what computes it.
        chunk_rows: Positions of one chunk; None for `loss_chunk_rows`.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    hidden = batch.tokens * config.hidden_size * batch.stream_bytes
    if config.head is not None:  # outputs, their logarithms and gradients in fp32, of all positions: a bound
        outputs = 4 * batch.tokens * config.head.outputs
        return LossBytes(kept=2 * outputs, forward=outputs, backward=hidden + 2 * outputs)
    weight = vocabulary_size(config) * config.hidden_size
    rows = min(batch.tokens, chunk_rows or loss_chunk_rows(vocabulary_size(config), config.hidden_size))
    chunk = rows * vocabulary_size(config) * _chunk_bytes_per_logit(config, batch)
    if batch.arithmetic == "autocast":
        chunk += 2 * weight  # its bf16 form
    product = 0
    if batch.stream_bytes == 2:
        # added to an fp32 sum, for which CPUs first make it fp32; logarithms, gradient and slope are still there
        per_logit = 6 if config.final_logit_softcapping is None else 10
        product = rows * (vocabulary_size(config) * per_logit + 2 * config.hidden_size)
        product += weight * (2 if batch.device_type == "cuda" else 6)
    return LossBytes(
        kept=hidden + 4 * weight,
        forward=hidden + max(chunk, product),
        backward=hidden + weight * (6 if batch.stream_bytes == 2 else 4),
    )


def _chunk_bytes_per_logit(config: ModelConfig, batch: MicroBatch) -> int:
    """The most that lives of one logit: while products become logits, or while these become logarithms."""
    is_scaled, is_capped = config.logits_scaling != 1.0, config.final_logit_softcapping is not None
    is_narrow = batch.product_bytes == 2
    if is_scaled or is_capped:  # products, logits, and twice what is between; then slopes, logits, logarithms
        return max(4 * (1 + is_scaled + 2 * is_capped) + 2 * is_narrow, 8 + 4 * is_capped)
    if not is_narrow:
        return 8
    return 6 if batch.device_type == "cuda" else 10  # CPUs first make them fp32


def kv_cache_bytes(
    config: ModelConfig, *, sequences: int, positions: int, element_bytes: int, block_tokens: int = 256
) -> int:
    """The most that the keys and values of all layers take; one layer's old keys come on top while it grows.

    The pass over a prompt holds all of it in sliding layers too: their bound is for what follows.

    Args:
        config: Shape of the model.
        sequences: Rows that are generated side by side.
        positions: Tokens held of each, prompt included.
        element_bytes: 2 in bf16, 4 in fp32.
        block_tokens: Positions by which the cache grows.
    """
    room = 0
    for layer in range(config.num_hidden_layers):
        held = positions
        if config.layer_type(layer) == "sliding_attention" and config.sliding_window is not None:
            held = min(positions, config.sliding_window - 1 + block_tokens)
        room += held + block_tokens
    return 2 * sequences * room * config.key_value_heads * config.head_size * element_bytes
