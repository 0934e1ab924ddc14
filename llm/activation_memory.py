"""What a forward pass keeps for the backward pass, in bytes. Imports no torch: `plan` needs it.

Counted tensor by tensor as `llm.layers` makes them, each storage once, the loss left out; a test measures the same on
the real model. What is needed only while a kernel runs is not counted. Experts are counted in their `grouped` form.
Legend: N tokens, T sequence, D model, H query heads, G key/value heads, K head size, F hidden, E experts, C experts
chosen per token, p bytes of a product's number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm.accounting import parameter_shapes, vocabulary_size
from llm.config import ModelConfig
from llm.memory import BAND_QUERIES, SHORT_ROW_TOKENS, MicroBatch, loss_bytes

if TYPE_CHECKING:
    from llm.activation_checkpointing import ActivationCheckpointing

_ID_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class ActivationBytes:
    """What is kept of a forward pass for its backward pass, the loss left out."""

    layers: int
    """Of all decoder layers; with checkpointing their inputs, and if it is selective the results of products."""
    recomputed: int
    """Of one layer besides, when checkpointing has computed it again; 0 without."""
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
    whole = kept = _layer_bytes(config, batch)
    if activation_checkpointing != "off":
        kept = batch.tokens * config.hidden_size * batch.stream_bytes
        if activation_checkpointing == "selective":
            kept += _results_bytes(config, batch)
    return ActivationBytes(
        layers=config.num_hidden_layers * kept,
        recomputed=whole - kept,
        ends=_ends_bytes(config, batch),
        shared=_shared_bytes(config, batch, activation_checkpointing != "off"),
    )


def peak_bytes(
    config: ModelConfig, batch: MicroBatch, activation_checkpointing: ActivationCheckpointing = "off"
) -> int:
    """The most that one micro-batch holds at a time besides parameters and their gradients.

    That is while the loss is computed or in the last layer, while everything of the layers before it is still there: in
    the backward pass of its feed-forward or, where attention holds T x T scores, on either way through these. What
    lives there follows from the steps of `llm.layers`; a test holds it to a measured peak.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    N, D, L = batch.tokens, config.hidden_size, config.num_hidden_layers
    kept, loss = activation_bytes(config, batch, activation_checkpointing), loss_bytes(config, batch)
    # in the forward pass: bf16 forms of matrices that autocast holds to its end, where no layer keeps them
    casts = 0 if activation_checkpointing == "off" else L * _cast_bytes(config, batch)
    moments = [kept.total + loss.kept + max(loss.forward + casts, loss.backward)]
    # in the backward pass: ids, the gradient of the stream, and that of a tied weight, which waits for the embedding's
    tied = vocabulary_size(config) if config.tie_word_embeddings and config.head is None else 0
    in_layer = kept.layers + kept.recomputed + kept.shared + N * _ID_BYTES + (N + tied) * D * batch.stream_bytes
    moments.append(in_layer + _feed_forward_backward_bytes(config, batch))
    if batch.attention == "eager":
        moments.append(in_layer + _scores_backward_bytes(config, batch))
        before = kept.layers // L * (L - 1) + kept.shared + N * _ID_BYTES + casts
        moments.append(before + _scores_forward_bytes(config, batch, activation_checkpointing))
    return max(moments)


def _feed_forward_backward_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """Beyond what the layer has kept: the gradient of the second product's input, and with it that of its matrix, or
    where the gate is undone twice as much once more, or that of the first matrix when all that was kept is gone."""
    N, D, p = batch.tokens, config.hidden_size, batch.product_bytes
    if config.num_experts is not None:  # on either side of the activation, or of the weighing of outputs
        return N * p * config.num_experts_per_tok * 3 * max(config.expert_size, D)
    matrix = D * (6 if batch.arithmetic == "autocast" else p)  # which autocast makes fp32
    gate = max(2 * N * p, 2 * matrix - 2 * N * p) if config.gated_mlp else 0
    return config.intermediate_size * (N * p + max(matrix, gate))


def _scores_forward_bytes(config: ModelConfig, batch: MicroBatch, activation_checkpointing: str) -> int:
    """Of one layer while its softmax is computed: scores before and after masking, weights, and what came before."""
    N, D, H, p = batch.tokens, config.hidden_size, config.num_attention_heads, batch.product_bytes
    heads, factor = N * (H + 2 * config.key_value_heads) * config.head_size, _eager_bytes(batch)
    scores = 8 + factor * (2 if activation_checkpointing == "selective" else 1)
    return N * D * (batch.stream_bytes + p) + heads * (2 * p + factor) + N * H * batch.seq_len * scores


def _scores_backward_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """Gradients of weights and of scores, and those of queries, keys, values and outputs, where the copy of the weights
    and all that the feed-forward has kept is no longer."""
    N, H, factor = batch.tokens, config.num_attention_heads, _eager_bytes(batch)
    freed = _norm_bytes(config, batch, batch.stream_bytes) + _feed_forward_bytes(config, batch)
    scores = 8 - (factor if _copies_weights(config, batch) else 0)
    return N * H * (batch.seq_len * scores + 4 * config.head_size * factor) - freed


def _layer_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    N, D, p = batch.tokens, config.hidden_size, batch.product_bytes
    kept = 2 * _norm_bytes(config, batch, batch.stream_bytes)
    if config.sandwich_norm:
        kept += 2 * _norm_bytes(config, batch, p)
    if config.residual_dropout:
        kept += 2 * N * D  # which elements are kept, a byte each
    kept += _cast_bytes(config, batch)
    return kept + _feed_forward_bytes(config, batch) + _attention_bytes(config, batch)


def _results_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """Of the matrix products of a layer and of its attention: what selective checkpointing keeps."""
    N, D, H, p = batch.tokens, config.hidden_size, config.num_attention_heads, batch.product_bytes
    heads = N * (2 * H + 2 * config.key_value_heads) * config.head_size * p  # in, and out
    if batch.attention == "eager":
        heads += N * H * (batch.seq_len * _eager_bytes(batch) + config.head_size * (_eager_bytes(batch) - p))
    else:
        heads += N * H * 4 + max(batch.copied_tokens - N, 0) * H * (config.head_size * p + 4)
    if config.num_experts is None:
        return heads + N * p * (2 * D + config.intermediate_size * (2 if config.gated_mlp else 1))
    rows = config.num_experts_per_tok * (2 * config.expert_size + D)
    return heads + N * (p * (D + rows) + 4 * config.num_experts)


def _feed_forward_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """Its input, the first product, and the input of the second."""
    N, D, p = batch.tokens, config.hidden_size, batch.product_bytes
    if config.num_experts is None:
        return N * p * (D + config.intermediate_size * (3 if config.gated_mlp else 2))
    return _experts_bytes(config, batch, config.num_experts)


def _experts_bytes(config: ModelConfig, batch: MicroBatch, E: int) -> int:
    """Each token's row once for each of its experts, before and after them; what sorts and weighs the rows; and the
    router's probabilities and logits, which are made of fp32 forms of its input and its weight."""
    N, B, C, p = batch.tokens, batch.sequences, config.num_experts_per_tok, batch.product_bytes
    normalized = 4 * N * (C + 1) if config.norm_topk_prob else 0
    rows = N * C * ((2 * config.hidden_size + 3 * config.expert_size + 1) * p + 3 * _ID_BYTES)
    router = N * (4 * config.hidden_size + 8 * E + 9) + 4 * (E + B * E + B)
    weight = 4 * E * config.hidden_size if batch.stream_bytes == 2 else 0
    return rows + normalized + router + weight


def _attention_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """From the input of the product that makes queries, keys and values to that of the output projection."""
    N, K, p = batch.tokens, config.head_size, batch.product_bytes
    H, G = config.num_attention_heads, config.key_value_heads
    kept = N * p * (config.hidden_size + H * K)
    if batch.attention == "eager":
        # a product of two tensors copies what it cannot see as one batch of matrices
        has_views = batch.arithmetic == "fp32" and (batch.sequences == 1 or G == 1)
        kept += _square_bytes(config, batch, has_views)
    else:
        has_views = True  # logarithms of the softmax's sums; of what is copied queries, keys, values and outputs
        kept += N * H * 4 + batch.copied_tokens * (2 * H + 2 * G) * K * p
    is_stepwise = batch.stream_bytes != p
    if has_views or (config.qk_norm and not is_stepwise):
        kept += N * (H + 2 * G) * K * p
    if config.qk_norm:
        kept += N * (H + G) * (4 + (8 * K if is_stepwise else 0) + (K * p if has_views else 0))
    return kept


def _square_bytes(config: ModelConfig, batch: MicroBatch, has_views: bool) -> int:
    """T x T weights of every head, and copies of queries, keys and values in the numbers they are multiplied in."""
    N, K, H, G = batch.tokens, config.head_size, config.num_attention_heads, config.key_value_heads
    factor = _eager_bytes(batch)
    copies = (0 if has_views and H == G else H) + (0 if has_views else 2 * G)
    weights = 4
    if config.attn_logit_softcapping is not None:
        weights += factor
    if config.attention_dropout:
        weights += 1
    if _copies_weights(config, batch):
        weights += factor
    return N * copies * K * factor + N * H * batch.seq_len * weights


def _copies_weights(config: ModelConfig, batch: MicroBatch) -> bool:
    """Whether `eager` multiplies values by a copy of the softmax's result."""
    has_groups = config.num_attention_heads > config.key_value_heads
    return has_groups or config.attention_dropout > 0 or batch.arithmetic == "autocast"


def _eager_bytes(batch: MicroBatch) -> int:
    """Of one number in the products of the `eager` attention, which widens its inputs."""
    return 2 if batch.arithmetic == "autocast" else 4


def _ends_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    N, D = batch.tokens, config.hidden_size
    positions = batch.seq_len * _ID_BYTES if config.position_embedding == "learned" else 0
    dropped = N * D if config.embedding_dropout else 0
    return N * _ID_BYTES + positions + dropped + _norm_bytes(config, batch, batch.stream_bytes)


def _shared_bytes(config: ModelConfig, batch: MicroBatch, recomputes: bool) -> int:
    T, types = batch.seq_len, [config.layer_type(layer) for layer in range(config.num_hidden_layers)]
    tables = len(set(types)) * T * config.head_size * 4 if config.position_embedding == "rope" else 0
    mask = (batch.sequences if batch.documents else 1) * T**2
    if batch.attention == "eager":  # keeps nothing of its masks, which layers need that are computed again
        return tables + (4 * mask * len(set(types)) if recomputes else 0)
    window = config.sliding_window if config.sliding_window is not None and config.sliding_window < T else None
    masked = [kind for kind in types if batch.documents or (window is not None and kind == "sliding_attention")]
    if batch.attention == "varlen" and (batch.device_type == "cuda" or T > SHORT_ROW_TOKENS):
        band = 0
        if window is not None and batch.device_type == "cpu" and "sliding_attention" in types:
            band = BAND_QUERIES * (BAND_QUERIES + window - 1) * batch.stream_bytes
        return tables + band + 3 * _ID_BYTES * batch.copied_tokens * len(set(masked))
    if batch.attention not in ("sdpa", "varlen"):
        return tables
    if batch.arithmetic == "autocast" and not recomputes:
        return tables + 2 * mask * len(masked)  # each layer keeps a bf16 form of its own
    return tables + batch.stream_bytes * mask * len(set(masked))


def _norm_bytes(config: ModelConfig, batch: MicroBatch, input_bytes: int) -> int:
    """Of a norm over D: its input, which nothing else keeps, and what it makes on the way; its output not."""
    N, D = batch.tokens, config.hidden_size
    if config.normalization == "layer_norm":
        statistic = input_bytes if batch.device_type == "cpu" else 4
        return N * (D * input_bytes + 2 * statistic)
    if input_bytes != batch.stream_bytes:  # narrower than the scales: in steps, the input in fp32 and normalised
        return N * (4 + 8 * D)
    return N * (4 + D * input_bytes)


def _cast_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """Of a layer's matrices, what autocast makes bf16: all but the router's."""
    if batch.arithmetic != "autocast":
        return 0
    shapes = {name: shape for name, shape in parameter_shapes(config).items() if ".layers.0." in name}
    return 2 * sum(math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and ".gate." not in name)
