"""Floating-point operations of a model, by PaLM's law and product by product, and MFU. Imports no torch.

The law is what the field compares speeds with, and rounds: it counts norm scales, biases and embedding rows as if they
were products. `forward_flops` and `step_flops` count the matrix products that are made and nothing else: no looking up
of embeddings, no norms, activations, rotations or softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, assert_never

from llm.accounting import count_parameters, output_size
from llm.config import ModelConfig

if TYPE_CHECKING:
    from llm.activation_checkpointing import ActivationCheckpointing

PEAK_BF16_FLOPS: tuple[tuple[str, float], ...] = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835.5e12),
    ("H200 NVL", 835.5e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
)
"""Dense bf16 FLOP/s by a part of the device name, from NVIDIA's data sheets; the first match counts."""


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of forward and backward for one token, by PaLM's law."""

    full: float
    """Attention counted over the whole T x T square, as in PaLM."""
    causal: float
    """Attention counted over the causal half that is really needed."""


@dataclass(frozen=True, kw_only=True)
class PassFlops:
    """Floating-point operations of the matrix products of one pass, by part; (A, B) @ (B, C) is 2 A B C of them."""

    projections: int = 0
    """Those that make queries, keys and values, and the output of attention."""
    scores: int = 0
    """Queries by keys and weights by values, over all T x T pairs of positions, which is what `eager` computes."""
    visible_scores: int = 0
    """The same over the pairs that the causal mask and the window leave: the least that a kernel can do. Documents,
    which leave fewer still, are the data's and are not counted."""
    feed_forward: int = 0
    """Feed-forwards, or the experts that a token uses."""
    router: int = 0
    """Scores of all experts."""
    output: int = 0
    """Hidden states by output weight, tied or not."""

    @property
    def total(self) -> int:
        """All products, with the scores of all pairs."""
        return self.projections + self.scores + self.feed_forward + self.router + self.output

    @property
    def visible_total(self) -> int:
        """All products, with the scores of the visible pairs alone."""
        return self.total - self.scores + self.visible_scores

    def times(self, factor: int) -> PassFlops:
        """Every part, so many times."""
        return PassFlops(**{part.name: factor * getattr(self, part.name) for part in fields(self)})


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Floating-point operations of the matrix products of one training step, by what they are for."""

    forward: PassFlops
    """The loss."""
    backward: PassFlops
    """Gradients: of each product two, by its two factors. Those of the output weight are made beside the loss."""
    recomputed: PassFlops
    """What activation checkpointing computes a second time. Fused kernels compute their scores once more besides."""

    @property
    def total(self) -> int:
        """What a step needs: forward and backward, without what is computed twice to save memory."""
        return self.forward.total + self.backward.total


def flops_per_token(config: ModelConfig, seq_len: int) -> FlopCount:
    """Floating-point operations of one training token: 6 N + 12 L d T, and 6 N + 6 L d T for the causal half.

    N is the number of distinct parameters that a token meets (a tied embedding once, of the experts those it uses), L
    the layers, d = H * K the width of all query heads together, T the sequence length, windows or not. From PaLM,
    appendix B (arXiv:2204.02311). Operations done twice to save memory are not counted.

    Args:
        config: Shape of the model.
        seq_len: Sequence length T, in tokens.

    Returns:
        Operations per token of forward and backward together.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    matrices = 6.0 * count_parameters(config).active
    width = config.num_attention_heads * config.head_size
    attention = 12.0 * config.num_hidden_layers * width * seq_len
    return FlopCount(full=matrices + attention, causal=matrices + attention / 2)


def forward_flops(config: ModelConfig, seq_len: int, sequences: int = 1) -> PassFlops:
    """Matrix products of one forward pass over whole sequences, with the logits of every position.

    Args:
        config: Shape of the model.
        seq_len: Tokens of each sequence, T.
        sequences: Number of them.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    D, L, tokens = config.hidden_size, config.num_hidden_layers, sequences * seq_len
    queries, keys = config.num_attention_heads * config.head_size, config.key_value_heads * config.head_size
    visible = sum(_visible_pairs(config, layer, seq_len) for layer in range(L))
    return PassFlops(
        projections=2 * L * tokens * D * (2 * queries + 2 * keys),
        scores=4 * queries * L * sequences * seq_len**2,
        visible_scores=4 * queries * sequences * visible,
        feed_forward=L * tokens * _feed_forward_flops(config),
        router=0 if config.num_experts is None else 2 * L * tokens * D * config.num_experts,
        output=2 * tokens * D * output_size(config),
    )


def step_flops(
    config: ModelConfig,
    seq_len: int,
    sequences: int = 1,
    activation_checkpointing: ActivationCheckpointing = "off",
) -> StepFlops:
    """Matrix products of one training step, however many ranks and micro-batches share it.

    Args:
        config: Shape of the model.
        seq_len: Tokens of each sequence, T.
        sequences: Of the global batch.
        activation_checkpointing: What is computed twice.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    forward = forward_flops(config, seq_len, sequences)
    return StepFlops(
        forward=forward,
        backward=forward.times(2),
        recomputed=_recomputed(config, forward, activation_checkpointing),
    )


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device, or None where it is not known.

    A slice of a device (MIG) has no entry: its name is that of the whole device, its speed is not.

    Args:
        device_name: As torch.cuda.get_device_name gives it.
    """
    if "MIG" in device_name:
        return None
    return next((flops for part, flops in PEAK_BF16_FLOPS if part in device_name), None)


def model_flops_utilization(tokens_per_second: float, flops_per_token: float, peak_flops: float | None) -> float | None:
    """MFU = tokens/s * FLOP/token / peak FLOP/s, a fraction (PaLM, appendix B, arXiv:2204.02311).

    Args:
        tokens_per_second: Of all devices together, or of one.
        flops_per_token: From `flops_per_token`, full or causal.
        peak_flops: FLOP/s of as many devices as the tokens were counted over; None where unknown.

    Returns:
        The fraction, or None where the peak is unknown or the result is above 1 and so cannot be true.
    """
    if peak_flops is None:
        return None
    utilization = tokens_per_second * flops_per_token / peak_flops
    return utilization if utilization <= 1.0 else None


def _feed_forward_flops(config: ModelConfig) -> int:
    """Of one token in one layer, forward."""
    if config.num_experts is not None:
        return 2 * config.num_experts_per_tok * 3 * config.hidden_size * config.expert_size
    return 2 * (3 if config.gated_mlp else 2) * config.hidden_size * config.intermediate_size


def _visible_pairs(config: ModelConfig, layer: int, seq_len: int) -> int:
    """Pairs of a query and a key that it sees, in one sequence: each query sees itself and those before it."""
    window = seq_len
    if config.layer_type(layer) == "sliding_attention" and config.sliding_window is not None:
        window = min(window, config.sliding_window)
    return seq_len * window - window * (window - 1) // 2


def _recomputed(config: ModelConfig, forward: PassFlops, mode: ActivationCheckpointing) -> PassFlops:
    if mode == "off" or mode == "selective":  # products are what selective checkpointing keeps
        return PassFlops()
    if mode == "full":
        # torch stops as soon as it has all that was kept, which is before the last product, unless something after
        # that product keeps its result: a norm, a dropout, or the weighting of experts
        repeats_last = config.sandwich_norm or config.residual_dropout > 0 or config.num_experts is not None
        last = 0 if repeats_last else forward.feed_forward // (3 if config.gated_mlp else 2)
        return PassFlops(
            projections=forward.projections,
            scores=forward.scores,
            visible_scores=forward.visible_scores,
            feed_forward=forward.feed_forward - last,
            router=forward.router,
        )
    assert_never(mode)
