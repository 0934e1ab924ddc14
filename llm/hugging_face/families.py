"""The families of models on Hugging Face that ModelConfig describes: a table, one entry for each `model_type`.

An entry says how the configuration translates, what a config.json must not ask for, and what tensors are called. A new
family is a new entry. Imports no torch.
"""

from __future__ import annotations

from types import MappingProxyType

from llm.hugging_face.config_fields import (
    Activation,
    EveryLayerSlides,
    Field,
    QueryScale,
    RootOfWidth,
    ScaledByRootOfHead,
    Translation,
    WidthOfFeedForward,
    gemma_layers,
    qwen_layers,
)
from llm.hugging_face.experts import EveryLayerHasExperts, EveryLayerSlidesIfSwitched, ExpertCount, WidthOfExperts
from llm.hugging_face.family import Family, TensorNames
from llm.hugging_face.rope import MIXTRAL_THETA, Rope, RopeByLayerType

__all__ = ["FAMILIES", "Family", "TensorNames"]


def _decoder(tied: bool = False, heads: int | None = None, epsilon: float = 1e-6) -> tuple[Translation, ...]:
    """What all families but GPT-2 say in the same words."""
    return (
        Field("vocab_size", needed=True),
        Field("hidden_size", needed=True),
        Field("num_hidden_layers", needed=True),
        Field("num_attention_heads", needed=True),
        Field("num_key_value_heads", heads),
        Field("intermediate_size", needed=True),
        Field("rms_norm_eps", epsilon),
        Field("max_position_embeddings", needed=True),
        Field("initializer_range", 0.02),
        Field("attention_dropout", 0.0),
        Field("tie_word_embeddings", tied),
    )


_SILU = Activation("hidden_act", "silu")
_LLAMA_BIASES = (Field("attention_bias", False), Field("mlp_bias", False))
_GEMMA_NORMS = MappingProxyType(
    {
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }
)
_CAUSAL = MappingProxyType({"use_bidirectional_attention": (None, False)})

_LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    translations=(*_decoder(), Field("head_dim"), _SILU, *_LLAMA_BIASES, Rope()),
    required={"rope_interleaved": (None, False)},
    harmless=("pretraining_tp", "is_llama_config"),
    heads_divide_width=True,
)
_MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    translations=(*_decoder(heads=8), Field("head_dim"), _SILU, EveryLayerSlides(), Rope()),
    required={"layer_types": (None,)},
)
_QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    translations=(*_decoder(heads=32), Field("head_dim"), _SILU, qwen_layers(), Rope()),
    constants={"attention_bias": True, "attention_output_bias": False},
    required={"use_mrope": (None, False)},
)
_QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    translations=(
        *_decoder(heads=32),
        Field("head_dim", 128),
        _SILU,
        Field("attention_bias", False),
        qwen_layers(),
        Rope(),
    ),
    constants={"qk_norm": True},
)
_QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    translations=(
        *_decoder(heads=4),
        Field("head_dim"),
        _SILU,
        Field("attention_bias", False),
        EveryLayerSlidesIfSwitched(),
        ExpertCount("num_experts"),
        Field("num_experts_per_tok", 8),
        Field("moe_intermediate_size", 768),
        Field("norm_topk_prob", False),
        Field("router_aux_loss_coef", 1e-3),
        EveryLayerHasExperts(),
        Rope(),
    ),
    constants={"qk_norm": True, "router_z_loss_coef": 0.0},
    harmless=("output_router_logits",),
    also_read=(TensorNames(stacked_experts=True),),
)
_MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    translations=(
        *_decoder(heads=8, epsilon=1e-5),
        Field("head_dim"),
        _SILU,
        EveryLayerSlides(default=None),
        ExpertCount("num_local_experts"),
        Field("num_experts_per_tok", 2),
        WidthOfExperts(),
        Field("router_aux_loss_coef", 1e-3),
        Rope(MIXTRAL_THETA),
    ),
    constants={"norm_topk_prob": True, "router_z_loss_coef": 0.0},
    required={"router_jitter_noise": (None, 0.0)},
    harmless=("output_router_logits",),
    names=TensorNames(
        modules=MappingProxyType(
            {
                "mlp.gate": "block_sparse_moe.gate",
                "mlp.experts.*.gate_proj": "block_sparse_moe.experts.*.w1",
                "mlp.experts.*.down_proj": "block_sparse_moe.experts.*.w2",
                "mlp.experts.*.up_proj": "block_sparse_moe.experts.*.w3",
            }
        )
    ),
    also_read=(TensorNames(stacked_experts=True),),
)
_GRANITE = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    translations=(
        *_decoder(),
        Field("head_dim"),
        _SILU,
        *_LLAMA_BIASES,
        Field("embedding_multiplier", 1.0),
        Field("attention_multiplier", 1.0),
        Field("residual_multiplier", 1.0),
        Field("logits_scaling", 1.0),
        Rope(),
    ),
)
_GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    translations=(
        *_decoder(tied=True, heads=16),
        Field("head_dim", 256),
        Activation("hidden_act", "gelu_pytorch_tanh", gelu_means_tanh=True),
        Field("attention_bias", False),
        RootOfWidth(),
        Rope(),
    ),
    required={"hidden_activation": (None, "gelu_pytorch_tanh"), **_CAUSAL},
    names=TensorNames(norm_offset=1.0),
)
_LATER_GEMMA = (
    *_decoder(tied=True, heads=4),
    Field("head_dim", 256),
    Activation("hidden_activation", "gelu_pytorch_tanh"),
    Field("attention_bias", False),
    RootOfWidth(),
    QueryScale(),
)
_GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    translations=(
        *_LATER_GEMMA,
        Field("attn_logit_softcapping", 50.0),
        Field("final_logit_softcapping", 30.0),
        gemma_layers(2),
        Rope(),
    ),
    constants={"sandwich_norm": True},
    required=_CAUSAL,
    harmless=("hidden_act",),
    heads_divide_width=True,
    names=TensorNames(norm_offset=1.0, modules=_GEMMA_NORMS),
)
_GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    translations=(
        *_LATER_GEMMA,
        Field("final_logit_softcapping"),
        gemma_layers(6, ("sliding_window_pattern", "_sliding_window_pattern")),
        RopeByLayerType(),
    ),
    constants={"sandwich_norm": True, "qk_norm": True},
    required={"attn_logit_softcapping": (None,), **_CAUSAL},
    harmless=("hidden_act",),
    heads_divide_width=True,
    names=TensorNames(norm_offset=1.0, modules=_GEMMA_NORMS),
)
_GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    translations=(
        Field("vocab_size", needed=True),
        Field("hidden_size", theirs="n_embd", needed=True),
        Field("num_hidden_layers", theirs="n_layer", needed=True),
        Field("num_attention_heads", theirs="n_head", needed=True),
        WidthOfFeedForward(),
        Activation("activation_function", "gelu_new"),
        Field("rms_norm_eps", 1e-5, "layer_norm_epsilon"),
        Field("max_position_embeddings", 1024, "n_positions"),
        Field("initializer_range", 0.02),
        Field("embedding_dropout", 0.1, "embd_pdrop"),
        Field("attention_dropout", 0.1, "attn_pdrop"),
        Field("residual_dropout", 0.1, "resid_pdrop"),
        ScaledByRootOfHead(),
        Field("tie_word_embeddings", True),
    ),
    constants={
        "gated_mlp": False,
        "normalization": "layer_norm",
        "position_embedding": "learned",
        "attention_bias": True,
        "mlp_bias": True,
    },
    required={"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
    harmless=(
        "n_ctx",
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ),
    names=TensorNames(
        prefix="transformer.",
        layers="h",
        modules=MappingProxyType(
            {
                "embed_tokens": "wte",
                "embed_positions": "wpe",
                "norm": "ln_f",
                "input_layernorm": "ln_1",
                "self_attn.qkv_proj": "attn.c_attn",
                "self_attn.o_proj": "attn.c_proj",
                "post_attention_layernorm": "ln_2",
                "mlp.up_proj": "mlp.c_fc",
                "mlp.down_proj": "mlp.c_proj",
            }
        ),
        fused=True,
        transposed=True,
        derived=(".attn.bias", ".attn.masked_bias"),
    ),
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _LLAMA,
        _MISTRAL,
        _MIXTRAL,
        _QWEN2,
        _QWEN3,
        _QWEN3_MOE,
        _GEMMA,
        _GEMMA2,
        _GEMMA3,
        _GRANITE,
        _GPT2,
    )
}
"""By model_type, in the order in which an export tries them: Granite, which can say what Gemma 1 says, after Gemma."""
