"""What autograd keeps of a forward pass for the backward pass, in bytes. Imports no torch: `plan` needs it.

Counted tensor by tensor as `llm.layers` makes them, each storage once, the loss left out; a test measures the same on
the real model. What is needed only while a kernel runs is not counted. Experts are counted in their `grouped` form.
Legend: N tokens, T sequence, D model, H query heads, G key/value heads, K head size, p bytes of a product's number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm.accounting import parameter_shapes
from llm.config import ModelConfig
from llm.memory import MicroBatch, loss_bytes

if TYPE_CHECKING:
    from llm.activation_checkpointing import ActivationCheckpointing

_ID_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class ActivationBytes:
    """What is kept of a forward pass for its backward pass, the loss left out."""

    layers: int
    """Of all decoder layers; with full checkpointing their inputs."""
    recomputed: int
    """Of one layer besides, while full checkpointing has computed it again; 0 without."""
    ends: int
    """Of the embedding and the final norm."""
    shared: int
    """Rotary tables and masks, which all layers of a type share."""

    @property
    def total(self) -> int:
        """What is kept between the passes."""
        return self.layers + self.ends + self.shared


def activation_bytes(
    config: ModelConfig, batch: MicroBatch, activation_checkpointing: ActivationCheckpointing = "off"
) -> ActivationBytes:
    """Bytes kept between the forward and the backward pass of one micro-batch.

    Args:
        config: Shape of the model.
        batch: Size of the micro-batch and what computes it.
        activation_checkpointing: What is kept of each layer.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    L, D = config.num_hidden_layers, config.hidden_size
    layer = _layer_bytes(config, batch)
    inputs = batch.tokens * D * batch.stream_bytes
    recomputes = activation_checkpointing == "full"
    return ActivationBytes(
        layers=L * (inputs if recomputes else layer),
        recomputed=layer if recomputes else 0,
        ends=_ends_bytes(config, batch),
        shared=_shared_bytes(config, batch, recomputes),
    )


def peak_bytes(
    config: ModelConfig, batch: MicroBatch, activation_checkpointing: ActivationCheckpointing = "off"
) -> int:
    """The most that one micro-batch holds at a time besides parameters and their gradients.

    That is either while the loss is computed, or in the backward pass of the last layer, while everything of the
    layers before it is still there. What autograd needs there follows from the steps of `llm.layers`; a test holds
    it to a measured peak.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    kept = activation_bytes(config, batch, activation_checkpointing)
    in_layer = kept.layers + kept.shared + kept.recomputed + _backward_bytes(config, batch)
    return max(kept.total + loss_bytes(config, batch).peak, in_layer)


def _backward_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """What the backward pass of a layer needs beyond what the layer has kept, of which it frees some on the way."""
    N, D, F, p = batch.tokens, config.hidden_size, config.intermediate_size, batch.product_bytes
    if config.num_experts is not None:
        F = config.num_experts_per_tok * config.expert_size
    stream = N * D * batch.stream_bytes
    # gated: gradients of gate, up and both together, when two of the four F that were kept are gone; else gradients
    # before and after the activation, when one of the two is gone
    feed_forward = N * F * p * (2 if config.gated_mlp else 1)
    if not _keeps_weights(config, batch):
        return stream + feed_forward
    # gradients of weights and of scores, where all that the feed-forward has kept is no longer
    freed = _norm_bytes(config, batch, batch.stream_bytes) + N * D * p + _feed_forward_bytes(config, batch)
    return stream + max(feed_forward, 2 * N * config.num_attention_heads * batch.seq_len * 4 - freed)


def _layer_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    N, D, p = batch.tokens, config.hidden_size, batch.product_bytes
    kept = 2 * _norm_bytes(config, batch, batch.stream_bytes) + 2 * N * D * p  # the first products keep their inputs
    if config.sandwich_norm:
        kept += 2 * _norm_bytes(config, batch, p)
    if config.residual_dropout:
        kept += 2 * N * D * _drop_bytes(batch, p)
    if batch.arithmetic == "autocast":
        kept += 2 * _layer_matrix_size(config)  # of each matrix its bf16 form
    return kept + _feed_forward_bytes(config, batch) + _attention_bytes(config, batch)


def _feed_forward_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """After its input: gate, up, activation and product, or the first product and its activation."""
    N, D, p = batch.tokens, config.hidden_size, batch.product_bytes
    if config.num_experts is None:
        return N * config.intermediate_size * p * (4 if config.gated_mlp else 2)
    # grouped: each token's row once for each of its experts, before and after them; what sorts and weighs the rows;
    # and the router's probabilities and logits, which are made of fp32 forms of its input and its weight
    C, E = config.num_experts_per_tok, config.num_experts
    rows = C * ((2 * D + 4 * config.expert_size) * p + 28 + p)
    router = 8 * E + 17
    if p == 4:
        return N * (rows + router)
    return N * (rows + router + 4 * D) + 4 * E * D


def _keeps_weights(config: ModelConfig, batch: MicroBatch) -> bool:
    """Whether attention keeps its T x T weights: torch's kernels for CPUs do too where weights are dropped."""
    return batch.attention == "eager" or (config.attention_dropout > 0 and batch.device_type == "cpu")


def _attention_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """From the product that makes queries, keys and values to the input of the output projection."""
    N, K, p = batch.tokens, config.head_size, batch.product_bytes
    H, G = config.num_attention_heads, config.key_value_heads
    kept = N * H * K * p
    if config.qk_norm:
        kept += _rms_bytes(batch, N * (H + G), K, p)
    is_fused = has_views = not _keeps_weights(config, batch)
    if not is_fused:
        # a product of two tensors copies what it cannot see as one batch of matrices
        has_views = batch.arithmetic == "fp32" and (batch.sequences == 1 or G == 1)
        kept += _square_bytes(config, batch, has_views)
    else:
        kept += N * H * 4  # logarithms of the softmax's sums
    if has_views or (config.qk_norm and _keeps_input(batch, p)):
        kept += N * (H + 2 * G) * K * p
    if has_views and (config.position_embedding == "rope" or config.qk_norm):
        kept += N * (H + G) * K * p
    return kept


def _square_bytes(config: ModelConfig, batch: MicroBatch, has_views: bool) -> int:
    """T x T weights of every head, and copies of queries, keys and values in the numbers they are multiplied in."""
    N, K, H, G = batch.tokens, config.head_size, config.num_attention_heads, config.key_value_heads
    has_groups, is_eager = H > G, batch.attention == "eager"
    factor = 2 if batch.arithmetic == "autocast" and is_eager else 4
    copies = (0 if has_views and not has_groups else H) + (0 if has_views else 2 * (G if is_eager else H))
    weights = 4
    if config.attn_logit_softcapping is not None:
        weights += factor
    if config.attention_dropout:
        weights += _drop_bytes(batch, 4)
    if has_groups or config.attention_dropout or factor == 2:
        weights += factor
    return N * copies * K * factor + N * H * batch.seq_len * weights


def _ends_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    N, D = batch.tokens, config.hidden_size
    positions = batch.seq_len * _ID_BYTES if config.position_embedding == "learned" else 0
    dropped = N * D * _drop_bytes(batch, batch.stream_bytes) if config.embedding_dropout else 0
    return N * _ID_BYTES + positions + dropped + _norm_bytes(config, batch, batch.stream_bytes)


def _shared_bytes(config: ModelConfig, batch: MicroBatch, recomputes: bool) -> int:
    types = [config.layer_type(layer) for layer in range(config.num_hidden_layers)]
    tables = len(set(types)) * batch.seq_len * config.head_size * 4 if config.position_embedding == "rope" else 0
    if batch.attention not in ("eager", "sdpa") or (_keeps_weights(config, batch) and not recomputes):
        return tables
    has_window = config.sliding_window is not None and config.sliding_window < batch.seq_len
    masked = [kind for kind in types if batch.documents or (has_window and kind == "sliding_attention")]
    mask = (batch.sequences if batch.documents else 1) * batch.seq_len**2
    if batch.arithmetic == "autocast" and not recomputes:
        return tables + 2 * mask * len(masked)  # each layer keeps a bf16 form of its own
    return tables + batch.stream_bytes * mask * len(set(masked))


def _norm_bytes(config: ModelConfig, batch: MicroBatch, input_bytes: int) -> int:
    """Of a norm over D: its input, which nothing else keeps, and what it makes on the way; its output not."""
    N, D = batch.tokens, config.hidden_size
    if config.normalization == "layer_norm":
        statistic = input_bytes if batch.device_type == "cpu" else 4
        return N * (D * input_bytes + 2 * statistic)
    return _rms_bytes(batch, N, D, input_bytes) + (N * D * input_bytes if _keeps_input(batch, input_bytes) else 0)


def _rms_bytes(batch: MicroBatch, rows: int, width: int, input_bytes: int) -> int:
    """What an RMS norm keeps besides its input: a factor for each row; in steps the input in fp32 and normalised."""
    if _is_one_kernel(batch, input_bytes):
        return 4 * rows
    return 4 * rows * (1 + width * (1 if input_bytes == 4 else 2))


def _keeps_input(batch: MicroBatch, input_bytes: int) -> bool:
    """Whether an RMS norm keeps its input itself, and not an fp32 form of it."""
    return input_bytes == 4 or _is_one_kernel(batch, input_bytes)


def _is_one_kernel(batch: MicroBatch, input_bytes: int) -> bool:
    """GPUs have a kernel for inputs in the dtype of the scales, which autocast does not change."""
    return batch.device_type == "cuda" and input_bytes == batch.stream_bytes


def _drop_bytes(batch: MicroBatch, element_bytes: int) -> int:
    return 1 if batch.device_type == "cuda" else element_bytes


def _layer_matrix_size(config: ModelConfig) -> int:
    shapes = parameter_shapes(config)
    return sum(math.prod(shape) for name, shape in shapes.items() if ".layers.0." in name and len(shape) > 1)
