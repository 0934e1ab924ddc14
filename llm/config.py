"""What a user may say about the model, its optimizer and its schedule. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STRICT = {"strict": True, "extra": "forbid", "use_attribute_docstrings": True}
OptimizerName = Literal["adamw", "sgd", "muon"]
_OPTIMIZERS_OF_FIELD: dict[str, tuple[OptimizerName, ...]] = {
    "betas": ("adamw", "muon"),
    "eps": ("adamw", "muon"),
    "momentum": ("sgd", "muon"),
    "nesterov": ("sgd", "muon"),
    "ns_steps": ("muon",),
    "learning_rate_adjustment": ("muon",),
}
"""The optimizers that read each field; others are read by all."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the decoder Transformer. Fields are named as in Hugging Face's Llama config."""

    __pydantic_config__ = STRICT

    vocab_size: int | None = None
    """Pieces the embedding holds; null takes the tokenizer's size."""
    hidden_size: int = 256
    """Width D of the residual stream."""
    num_hidden_layers: int = 6
    """Decoder blocks."""
    num_attention_heads: int = 8
    """Query heads H; must divide hidden_size unless head_dim is given."""
    num_key_value_heads: int | None = None
    """Key/value heads G; must divide num_attention_heads. Null means one per query head."""
    head_dim: int | None = None
    """Size K of one head; null means hidden_size / num_attention_heads."""
    intermediate_size: int = 704
    """Width F of the SwiGLU feed-forward."""
    rope_theta: float = 10000.0
    """Base of the rotary position frequencies."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square before the root."""
    tie_word_embeddings: bool = True
    """Use the input embedding as the output projection."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head before the rotation."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights; residual outputs are divided by sqrt(2 * layers)."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention backend: `eager` is the readable reference, `sdpa` torch's fused kernels, `auto` resolves once."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            _require_positive(name, getattr(self, name))
        for name in ("vocab_size", "num_key_value_heads", "head_dim"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            _require_positive(name, getattr(self, name))
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}: "
                "every head needs the same whole size. Change one of them, or set head_dim."
            )
        if self.num_attention_heads % self.key_value_heads:
            raise ValueError(
                f"num_key_value_heads {self.key_value_heads} does not divide num_attention_heads "
                f"{self.num_attention_heads}: each key/value head serves a whole group of query heads. "
                "Take a divisor."
            )
        if self.head_size % 2:
            raise ValueError(
                f"the head size is {self.head_size}, which is odd: rotary positions turn pairs of numbers. "
                "Change hidden_size or num_attention_heads, or set an even head_dim."
            )

    @property
    def head_size(self) -> int:
        """Size K of one attention head."""
        return self.head_dim if self.head_dim is not None else self.hidden_size // self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        """Number G of key/value heads."""
        return self.num_key_value_heads if self.num_key_value_heads is not None else self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule, and gradient clipping before it."""

    __pydantic_config__ = STRICT

    name: OptimizerName = "adamw"
    """`adamw` (arXiv:1711.05101); `sgd` with momentum; `muon` (arXiv:2502.16982) for the matrices of the decoder
    layers, with AdamW for embedding, output and norms."""
    learning_rate: float = 1e-3
    """Peak rate, reached after warm-up."""
    weight_decay: float = 0.1
    """Decay of matrices, norms have none: decoupled from the gradient, but with sgd added to it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments; adamw, muon."""
    eps: float = 1e-8
    """Added to the root of the second moment; adamw, muon."""
    momentum: float = 0.95
    """Decay rate of the sum (sgd) or average (muon) of gradients; sgd, muon."""
    nesterov: bool = True
    """Add the newest gradient to the momentum once more before it is applied; sgd, muon."""
    ns_steps: int = 5
    """Newton-Schulz iterations that orthogonalise an update; muon."""
    learning_rate_adjustment: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """How a matrix's rate follows from its shape A x B: times 0.2 sqrt(max(A, B)), which keeps AdamW's rates usable,
    or times sqrt(max(1, A / B)); muon."""
    gradient_clip_norm: float | None = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it. Null means no clipping."""

    def __post_init__(self) -> None:
        _require_positive("learning_rate", self.learning_rate)
        _require_positive("eps", self.eps)
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}, and a decay cannot be negative. Use 0 for none.")
        for name, optimizers in _OPTIMIZERS_OF_FIELD.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default and self.name not in optimizers:
                raise ValueError(
                    f"{name} is {value!r}, and optimizer.name is {self.name}, which has no use for it: it belongs to "
                    f"{' and '.join(optimizers)}. Leave {name} out, or change the name."
                )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}: each must be at least 0 and under 1.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}: it must be at least 0 and under 1.")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov is on and momentum is 0, so there is nothing to add to. Set nesterov to false.")
        if not 1 <= self.ns_steps < 100:
            raise ValueError(f"ns_steps is {self.ns_steps}: it must be from 1 to 99.")
        if self.gradient_clip_norm is not None:
            _require_positive("gradient_clip_norm", self.gradient_clip_norm)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over steps: linear warm-up, then the named shape down to a fraction of the peak."""

    __pydantic_config__ = STRICT

    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """`cosine` half wave; `linear` straight line from warm-up to the end (arXiv:2502.15938); `wsd` warm-up, stable,
    linear decay (arXiv:2404.06395); `constant` after warm-up."""
    warmup_steps: int = 40
    """Steps of linear rise to the peak."""
    decay_steps: int | None = None
    """wsd only: length of the final decay; null means a fifth of max_steps."""
    min_learning_rate_ratio: float = 0.1
    """Rate at the end of cosine, linear or wsd, as a fraction of the peak."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, and cannot be negative. Use 0 for none.")
        if self.decay_steps is not None:
            if self.name != "wsd":
                raise ValueError(f"decay_steps belongs to the wsd schedule, and schedule.name is {self.name}. Drop it.")
            _require_positive("decay_steps", self.decay_steps)
        if not 0 <= self.min_learning_rate_ratio <= 1:
            raise ValueError(
                f"min_learning_rate_ratio is {self.min_learning_rate_ratio}: it is a fraction of the peak, from 0 to 1."
            )


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}, and must be above 0.")
