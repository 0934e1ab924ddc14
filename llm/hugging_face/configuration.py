"""A config.json read as a ModelConfig, and a ModelConfig written as the config.json of a family that can express it.

Whether a family can is not listed anywhere: it can if what it writes is read back as the same model. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.errors import ExportError, HuggingFaceConfigError
from llm.hugging_face.config_fields import validated
from llm.hugging_face.families import FAMILIES, Family
from llm.model_config import ModelConfig

CONFIG_FILE = "config.json"
_SAME = 1e-9
"""Relative; scales take a root and a square on the way there and back, in double precision."""
_NOT_COMPUTED = (
    "attention",
    "experts",
    "initializer_range",
    "depth_scaled_initialization",
    "router_aux_loss_coef",
    "router_z_loss_coef",
)
"""Fields that say how a model is computed, begins or is driven in training, not what it computes."""
_DROPOUT = ("embedding_dropout", "attention_dropout", "residual_dropout")
"""Fields that matter in training alone: a family expresses a model also where it has no word for them."""

_REQUIRED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "auto_map": (None,),
    "partial_rotary_factor": (None, 1.0),
}
"""Keys of any config.json that would change what is computed, and the values that do not."""
_REMEDIES = {
    "quantization_config": "Load it with transformers, call dequantize(), and save_pretrained what comes out.",
    "router_jitter_noise": "It is noise of training alone: set it to 0 in a copy to go on without.",
    "auto_map": "It brings code of its own; delete the key from a copy if the model is a plain one of its type.",
}
_KINDS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "n_embd", "max_window_layers"), (int, "a whole number")),
    **dict.fromkeys(("sliding_window_pattern", "_sliding_window_pattern"), (int, "a whole number")),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), (dict, "an object")),
    "layer_types": (list, "a list"),
}
_HARMLESS = """
    _attn_implementation _attn_implementation_autoset _commit_hash _from_model_config _name_or_path architectures
    attn_implementation bad_words_ids begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    id2label is_decoder label2id length_penalty max_length min_length model_type name_or_path no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_scores
    pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class
    top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p unsloth_fixed
    unsloth_version use_bfloat16 use_cache
"""
"""Keys of any config.json that change nothing in the forward pass: how text is generated, who wrote it, and how."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a config.json says."""

    family: Family
    config: ModelConfig
    bos_token_id: int | None
    """Begins a text; null where the file names none."""
    eos_token_ids: tuple[int, ...]
    """End a text."""


def read_config(directory: Path) -> Description:
    """The model that a Hugging Face directory describes.

    Fields that say how to compute (attention, experts) or how to begin keep their defaults. The z-loss of routers, for
    which config.json has no word, is off.

    Raises:
        HuggingFaceConfigError: There is no config.json, it is torn, or it asks for what this program does not compute.
    """
    path = directory / CONFIG_FILE
    document = read_json_object(path)
    try:
        return read_document(document)
    except HuggingFaceConfigError as error:
        raise HuggingFaceConfigError(f"{path}: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        HuggingFaceConfigError: It is missing, torn or something else.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise HuggingFaceConfigError(
            f"{path} cannot be read ({error.strerror}): a Hugging Face directory has it. Give the directory that holds "
            "config.json and the .safetensors files."
        ) from error
    except ValueError as error:
        raise HuggingFaceConfigError(
            f"{path} is not whole JSON ({error}): it was cut off or overwritten. Download it again."
        ) from error
    if not isinstance(document, dict):
        raise HuggingFaceConfigError(f"{path} holds a {type(document).__name__}, not an object. Download it again.")
    return document


def read_document(document: Mapping[str, Any]) -> Description:
    """The model that the content of a config.json describes.

    Raises:
        HuggingFaceConfigError: It asks for what this program does not compute; names the key and the remedy.
    """
    family = _family_of(document)
    _refuse_what_is_not_computed(document, family)
    _refuse_wrong_kinds(document)
    values: dict[str, Any] = dict(family.constants)
    for translation in family.translations:
        values.update(translation.read(document))
    bos = _token_ids(document, "bos_token_id")
    return Description(
        family=family,
        config=validated(ModelConfig, values),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=_token_ids(document, "eos_token_id"),
    )


def write_document(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The config.json of the first family that expresses a model; its keys about tokens and dtype are the caller's.

    Dropout for which the family has no word is left out: `left_out` says which.

    Args:
        config: With vocab_size and max_position_embeddings known.

    Raises:
        ExportError: No family does; names the fields that stand in the way of the nearest.
    """
    nearest: tuple[str, list[str]] | None = None
    for family in FAMILIES.values():
        document = {"architectures": [family.architecture], "model_type": family.model_type}
        for translation in family.translations:
            document |= translation.write(config)
        different = [name for name in _not_expressed(config, family, document) if name not in _DROPOUT]
        if not different:
            return family, document
        if nearest is None or len(different) < len(nearest[1]):
            nearest = (family.model_type, different)
    assert nearest is not None
    stated = ", ".join(f"{name} = {getattr(config, name)!r}" for name in nearest[1])
    raise ExportError(
        f"no family of Hugging Face expresses this model: the nearest, {nearest[0]}, has no {stated}. Known are "
        f"{', '.join(FAMILIES)}. A model that is to be exported needs the fields of one of them."
    )


def left_out(config: ModelConfig, document: Mapping[str, Any]) -> dict[str, float]:
    """The dropout of a model that its config.json, by `write_document`, does not say, by field."""
    return {name: getattr(config, name) for name in differences(config, read_document(document).config)}


def differences(one: ModelConfig, other: ModelConfig) -> list[str]:
    """Fields of ModelConfig by which two models compute something else, however each was spelled."""
    left, right = _meaning(one), _meaning(other)
    return [name for name in left if not _same(left[name], right[name])]


def _family_of(document: Mapping[str, Any]) -> Family:
    name = document.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise HuggingFaceConfigError(
            f"model_type is {name!r}, and the families known here are {', '.join(FAMILIES)}. "
            "Take a model of one of them."
        )
    return FAMILIES[name]


def _refuse_wrong_kinds(document: Mapping[str, Any]) -> None:
    """Only for keys that translations compute with; the others are judged by the fields of ModelConfig."""
    for key, (kind, word) in _KINDS.items():
        value = document.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise HuggingFaceConfigError(f"{key} is {value!r}, and is {word}. Take the file as it was published.")


def _refuse_what_is_not_computed(document: Mapping[str, Any], family: Family) -> None:
    required = {**_REQUIRED, **family.required}
    translated = {key for translation in family.translations for key in translation.keys}
    known = {*required, *translated, *family.harmless, *_HARMLESS.split()}
    for key, value in document.items():
        if key in required and key not in translated and value not in required[key]:
            raise HuggingFaceConfigError(
                f"{key} is {value!r}, and models of type {family.model_type} are computed here as if it were "
                f"{_spelled(required[key][-1])}: the result would not be this model's. "
                f"{_REMEDIES.get(key, 'Take a model that does without.')}"
            )
        if key not in known and value is not None:
            raise HuggingFaceConfigError(
                f"{key} = {value!r} is not known here for model_type {family.model_type}, so whether it changes what "
                "the model computes is unknown. If it does not, delete the key from a copy of the file."
            )


def _spelled(value: Any) -> str:
    return "absent" if value is None or value == {} else json.dumps(value)


def _token_ids(document: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = document.get(key)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in values):
        raise HuggingFaceConfigError(f"{key} is {value!r}, and is a whole number. Take the file as it was published.")
    return tuple(values)


def _not_expressed(config: ModelConfig, family: Family, document: Mapping[str, Any]) -> list[str]:
    try:
        different = differences(config, read_document(document).config)
    except HuggingFaceConfigError:
        different = list(_meaning(config))
    if family.heads_divide_width and config.hidden_size % config.num_attention_heads:
        different.append("head_dim")
    return different


def _meaning(config: ModelConfig) -> dict[str, Any]:
    """The fields that decide what is computed, with every null and every pattern spelled out."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    types = [config.layer_type(layer) for layer in range(config.num_hidden_layers)]
    full = (config.rope_theta, _scaling_meaning(config))
    local = full if config.rope_local_base_freq is None else (config.rope_local_base_freq, None)
    rotates = config.position_embedding == "rope"
    for name in (*_NOT_COMPUTED, "moe_intermediate_size"):
        del fields[name]
    return fields | {
        "intermediate_size": config.expert_size,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "attention_output_bias": config.output_bias,
        "attention_multiplier": config.score_scale,
        "layer_types": types,
        "rope_theta": full[0] if rotates and "full_attention" in types else None,
        "rope_scaling": full[1] if rotates and "full_attention" in types else None,
        "rope_local_base_freq": local if rotates and "sliding_attention" in types else None,
    }


def _scaling_meaning(config: ModelConfig) -> tuple[Any, ...] | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    attention_factor = scaling.attention_factor
    if attention_factor is None and scaling.rope_type == "yarn":
        attention_factor = 0.1 * math.log(scaling.factor) + 1.0
    numbers = (
        scaling.factor,
        1.0 if scaling.low_freq_factor is None else scaling.low_freq_factor,
        4.0 if scaling.high_freq_factor is None else scaling.high_freq_factor,
        scaling.original_max_position_embeddings,
        32.0 if scaling.beta_fast is None else scaling.beta_fast,
        1.0 if scaling.beta_slow is None else scaling.beta_slow,
        attention_factor,
    )
    return (scaling.rope_type, *numbers)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_SAME)
    return bool(one == other)
