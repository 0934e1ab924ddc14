"""How positions are stretched. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm.config_rules import STRICT, require_positive

RopeType = Literal["linear", "llama3", "yarn"]

_SCALINGS_OF_FIELD: dict[str, tuple[RopeType, ...]] = {
    "low_freq_factor": ("llama3",),
    "high_freq_factor": ("llama3",),
    "original_max_position_embeddings": ("llama3", "yarn"),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "attention_factor": ("yarn",),
}
"""The kinds of scaling that read each field; `factor` is read by all."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched, so that a model reads longer texts than it was first trained on."""

    __pydantic_config__ = STRICT

    rope_type: RopeType
    """`linear` position interpolation (arXiv:2306.15595), `llama3` by wavelength (arXiv:2407.21783), `yarn`
    (arXiv:2309.00071)."""
    factor: float
    """How many times longer."""
    low_freq_factor: float | None = None
    """llama3: wavelengths above original length / this are stretched by the whole factor; null means 1."""
    high_freq_factor: float | None = None
    """llama3: wavelengths below original length / this stay as they are; null means 4."""
    original_max_position_embeddings: int | None = None
    """llama3, yarn: positions of the first training. Must be given."""
    beta_fast: float | None = None
    """yarn: turns within the original length above which a frequency stays as it is; null means 32."""
    beta_slow: float | None = None
    """yarn: turns below which a frequency is stretched by the whole factor; null means 1."""
    attention_factor: float | None = None
    """yarn: what cosines and sines are multiplied by; null means 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ValueError(f"factor is {self.factor}: a scaling makes positions longer, so it is at least 1.")
        for name, scalings in _SCALINGS_OF_FIELD.items():
            value = getattr(self, name)
            if value is None:
                continue
            if self.rope_type not in scalings:
                raise ValueError(
                    f"{name} is {value}, and rope_type is {self.rope_type}, which has no use for it: it belongs to "
                    f"{' and '.join(scalings)}. Leave {name} out, or change the type."
                )
            require_positive(name, value)
        if self.rope_type != "linear" and self.original_max_position_embeddings is None:
            raise ValueError(
                f"original_max_position_embeddings is null, and rope_type {self.rope_type} stretches by what the model "
                "saw of it. Set it to the positions of the first training."
            )
        low, high = self.low_freq_factor or 1.0, self.high_freq_factor or 4.0
        if self.rope_type == "llama3" and low >= high:
            raise ValueError(
                f"low_freq_factor is {low} and high_freq_factor {high}: frequencies between the two are mixed, so the "
                "former is below the latter. Use those of the model's own configuration."
            )
