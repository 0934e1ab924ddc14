"""What a config.json says about experts, and about the window beside them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm.errors import HuggingFaceConfigError
from llm.model_config import ModelConfig

_EVERY_LAYER: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": []}


@dataclass(frozen=True)
class ExpertCount:
    """num_experts, for which there are two keys: each family was published with one, and transformers 5 writes one."""

    published: str
    """The key that an export has: readers older than transformers 5 know no other."""
    keys: tuple[str, ...] = ("num_experts", "num_local_experts")

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """num_experts; where both keys are there they agree, since transformers obeys one or the other by family."""
        stated = [document[key] for key in self.keys if document.get(key) is not None]
        if not stated:
            raise HuggingFaceConfigError(
                f"{self.published} is missing, and the model has no shape without it. "
                "Take the file as it was published."
            )
        if any(count != stated[0] for count in stated):
            raise HuggingFaceConfigError(
                f"num_experts is {stated[0]} and num_local_experts {stated[1]}, two names of one number: which was "
                "meant is unknown. Delete the wrong one from a copy of the file; the weights show which."
            )
        return {"num_experts": stated[0]}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The published key."""
        return {self.published: config.num_experts}


@dataclass(frozen=True)
class WidthOfExperts:
    """Mixtral's intermediate_size, which is the width of an expert: it has no other feed-forward."""

    keys: tuple[str, ...] = ("intermediate_size",)

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """moe_intermediate_size, null for the same as intermediate_size."""
        return {"moe_intermediate_size": None}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The width of an expert, in place of what another feed-forward would have."""
        return {"intermediate_size": config.expert_size}


@dataclass(frozen=True)
class EveryLayerHasExperts:
    """Qwen's decoder_sparse_step and mlp_only_layers, by which some layers have a plain feed-forward instead."""

    keys: tuple[str, ...] = ("decoder_sparse_step", "mlp_only_layers")

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing, but refuses such layers."""
        for key, wanted in _EVERY_LAYER.items():
            stated = wanted if document.get(key) is None else document[key]
            if stated != wanted:
                raise HuggingFaceConfigError(
                    f"{key} is {stated!r}, which gives some layers a feed-forward without experts, and here every "
                    f"layer has experts or none has. Take a model in which it is {wanted}."
                )
        return {}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Both, as every layer has experts."""
        return dict(_EVERY_LAYER)


@dataclass(frozen=True)
class EveryLayerSlidesIfSwitched:
    """Qwen3-MoE's sliding_window, which is all layers' where use_sliding_window is set."""

    keys: tuple[str, ...] = ("sliding_window", "use_sliding_window", "max_window_layers")

    def read(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """sliding_window; refuses the full layers below max_window_layers, which transformers 5 lets slide."""
        window = document.get("sliding_window", 4096) if document.get("use_sliding_window", False) else None
        full = document.get("max_window_layers") or 0
        if window is not None and full > 0:
            raise HuggingFaceConfigError(
                f"max_window_layers is {full} and sliding_window {window}: by Qwen's rule the layers below do not "
                "slide, and transformers 5 lets all layers of this family slide: which was meant is unknown. Set "
                "max_window_layers to 0 in a copy of the file, or use_sliding_window to false."
            )
        return {"sliding_window": window}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """All three keys, so that readers of either rule let all layers slide or none."""
        slides = config.sliding_window is not None
        return {
            "sliding_window": config.sliding_window,
            "use_sliding_window": slides,
            "max_window_layers": 0 if slides else config.num_hidden_layers,
        }
