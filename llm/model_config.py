"""What a user may say about the model. Imports no torch, so that `--help` and `plan` are quick.

Fields are named as in the configurations of Hugging Face, because that is what people know: most as in Llama's, soft
caps as in Gemma 2's, multipliers as in Granite's, experts as in Qwen3-MoE's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llm.config_rules import STRICT, require_positive
from llm.head_config import HeadConfig
from llm.rope_scaling import RopeScaling, RopeType

__all__ = ["STRICT", "AttentionName", "LayerType", "ModelConfig", "RopeScaling", "RopeType"]

AttentionName = Literal["auto", "eager", "sdpa", "varlen", "flex", "flash3", "flash4"]
LayerType = Literal["full_attention", "sliding_attention"]

_POSITIVE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "rope_theta",
    "rms_norm_eps",
    "initializer_range",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "num_experts_per_tok",
)
_POSITIVE_OR_NULL = (
    "vocab_size",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_local_base_freq",
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention_multiplier",
    "num_experts",
    "moe_intermediate_size",
)
_OF_EXPERTS = (
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "experts",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the decoder Transformer; the defaults are Llama's."""

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
    """Width F of the feed-forward."""
    hidden_act: Literal["silu", "gelu", "gelu_pytorch_tanh"] = "silu"
    """Activation of the feed-forward; with gated_mlp `silu` is SwiGLU and the others GEGLU (arXiv:2002.05202)."""
    gated_mlp: bool = True
    """down(act(gate(x)) * up(x)); false is down(act(up(x))), as in GPT-2."""
    normalization: Literal["rms_norm", "layer_norm"] = "rms_norm"
    """`rms_norm` (arXiv:1910.07467), or `layer_norm` with scale and bias (arXiv:1607.06450)."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square, or variance, before the root; every norm's."""
    sandwich_norm: bool = False
    """Normalise also what each half of a block adds to the residual stream, as in Gemma 2 (arXiv:2408.00118)."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head before the rotation, as in Qwen3 (arXiv:2505.09388)."""
    position_embedding: Literal["rope", "learned"] = "rope"
    """Rotary positions (arXiv:2104.09864), or a learned row for each position, as in GPT-2."""
    max_position_embeddings: int | None = None
    """Longest sequence; null sets no limit. Needed for learned positions, which have a row for each."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Stretches the rotary frequencies of layers with full attention; null leaves them."""
    rope_local_base_freq: float | None = None
    """Base of the rotary frequencies in sliding layers, as in Gemma 3; null treats all layers alike."""
    sliding_window: int | None = None
    """Keys that a query of a sliding layer sees, its own among them; null where no layer slides."""
    layer_types: tuple[LayerType, ...] | None = None
    """Which layers slide: a pattern that is repeated over the layers. Null: all where sliding_window is set."""
    attention_bias: bool = False
    """Give the projections of attention a bias."""
    attention_output_bias: bool | None = None
    """Give the output projection of attention a bias; null means as attention_bias says. Qwen2 has none there."""
    mlp_bias: bool = False
    """Give the projections of the feed-forward a bias."""
    attn_logit_softcapping: float | None = None
    """Attention scores s become c tanh(s / c) (arXiv:2408.00118); null leaves them."""
    final_logit_softcapping: float | None = None
    """The same for the logits."""
    attention_multiplier: float | None = None
    """What attention scores are multiplied by; null means 1 / sqrt(K)."""
    embedding_multiplier: float = 1.0
    """What embeddings are multiplied by; Gemma takes sqrt(hidden_size)."""
    residual_multiplier: float = 1.0
    """What each half of a block is multiplied by before it is added, as in muP-trained models (arXiv:2203.03466)."""
    logits_scaling: float = 1.0
    """What logits are divided by."""
    embedding_dropout: float = 0.0
    """Fraction of the embedded numbers that a training step sets to zero."""
    attention_dropout: float = 0.0
    """Fraction of the attention weights that a training step sets to zero."""
    residual_dropout: float = 0.0
    """Fraction of what a half of a block adds that a training step sets to zero."""
    tie_word_embeddings: bool = True
    """Use the input embedding as the output projection."""
    num_experts: int | None = None
    """Feed-forwards of each layer, of which each token uses some; null means one, used by all."""
    num_experts_per_tok: int = 2
    """Experts that a token uses."""
    moe_intermediate_size: int | None = None
    """Width of one expert; null means intermediate_size."""
    norm_topk_prob: bool = True
    """Make the weights of a token's experts add up to one."""
    router_aux_loss_coef: float = 1e-3
    """Weight of the loss that evens out how often experts are used, the mean over layers, which is added to what is
    minimised and logged apart."""
    router_z_loss_coef: float = 1e-3
    """Weight of the squared logarithm of the router's partition function (arXiv:2202.08906), likewise."""
    experts: Literal["auto", "eager", "grouped"] = "auto"
    """How experts are computed: `eager` one after another, `grouped` in one product of sorted tokens."""
    head: HeadConfig | None = None
    """What is predicted in place of the next token, as it follows from `task` and the dataset's labels: null in a
    configuration."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""
    depth_scaled_initialization: bool = True
    """Divide the initial weights that write to the residual stream by sqrt(2 * layers), as in GPT-2."""
    attention: AttentionName = "auto"
    """Attention backend: `eager` is the readable reference, `sdpa` torch's fused kernels, `varlen` those whose work
    shrinks with documents and windows, `flex` kernels compiled for the model (GPU), `flash3` and `flash4` newer
    FlashAttention from its own package (GPU); `auto` resolves once."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelConfig:
        """The configuration that plain JSON values were made of; keys that their writer did not know at the default."""
        scaling, types, head = (document.get(key) for key in ("rope_scaling", "layer_types", "head"))
        parts = {
            "head": None if head is None else HeadConfig(**head),
            "rope_scaling": None if scaling is None else RopeScaling(**scaling),
            "layer_types": None if types is None else tuple(types),
        }
        return cls(**{**document, **parts})

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            require_positive(name, getattr(self, name))
        for name in _POSITIVE_OR_NULL:
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a fraction of at least 0 and under 1 is dropped.")
        self._check_heads()
        self._check_positions()
        self._check_experts()

    def _check_heads(self) -> None:
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
        if self.position_embedding == "rope" and self.head_size % 2:
            raise ValueError(
                f"the head size is {self.head_size}, which is odd: rotary positions turn pairs of numbers. "
                "Change hidden_size or num_attention_heads, or set an even head_dim."
            )

    def _check_positions(self) -> None:
        if self.position_embedding == "learned":
            if self.max_position_embeddings is None:
                raise ValueError(
                    "max_position_embeddings is null, and learned positions have a row for each. "
                    "Set it to at least data.seq_len."
                )
            for name in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(
                        f"{name} is set, and position_embedding is learned: nothing is rotated. "
                        f"Leave {name} out, or set position_embedding to rope."
                    )
        slides = self.layer_types is not None and "sliding_attention" in self.layer_types
        if self.layer_types == ():
            raise ValueError("layer_types is empty: the pattern needs at least one layer. Leave it out for all alike.")
        if slides and self.sliding_window is None:
            raise ValueError("layer_types has sliding layers, and sliding_window is null. Set it to the keys they see.")
        if self.sliding_window is not None and not slides and self.layer_types is not None:
            raise ValueError(
                f"sliding_window is {self.sliding_window}, and no layer of layer_types slides. Leave one of them out."
            )
        if self.rope_local_base_freq is not None and self.sliding_window is None:
            raise ValueError(
                f"rope_local_base_freq is {self.rope_local_base_freq}, and no layer slides: it belongs to sliding "
                "layers. Set sliding_window, or leave it out."
            )

    def _check_experts(self) -> None:
        if self.num_experts is None:
            for name in _OF_EXPERTS:
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}, and num_experts is null: there are no experts. "
                        f"Set num_experts, or leave {name} out."
                    )
            return
        for name in ("router_aux_loss_coef", "router_z_loss_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: a weight is at least 0. Use 0 for none.")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok} and num_experts {self.num_experts}: a token cannot "
                "use more experts than there are. Lower the one or raise the other."
            )
        if not self.gated_mlp or self.mlp_bias:
            raise ValueError("experts are gated and have no bias: leave gated_mlp and mlp_bias as they are.")

    @property
    def head_size(self) -> int:
        """Size K of one attention head."""
        return self.head_dim if self.head_dim is not None else self.hidden_size // self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        """Number G of key/value heads."""
        return self.num_key_value_heads if self.num_key_value_heads is not None else self.num_attention_heads

    @property
    def output_bias(self) -> bool:
        """Whether the output projection of attention has a bias."""
        return self.attention_bias if self.attention_output_bias is None else self.attention_output_bias

    @property
    def expert_size(self) -> int:
        """Width of one expert."""
        return self.intermediate_size if self.moe_intermediate_size is None else self.moe_intermediate_size

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.head_size**-0.5 if self.attention_multiplier is None else self.attention_multiplier

    @property
    def has_dropout(self) -> bool:
        """Whether a training step draws random numbers."""
        return any((self.embedding_dropout, self.attention_dropout, self.residual_dropout))

    def layer_type(self, layer: int) -> LayerType:
        """Whether the attention of a layer is full or slides."""
        if self.layer_types is not None:
            return self.layer_types[layer % len(self.layer_types)]
        return "full_attention" if self.sliding_window is None else "sliding_attention"
