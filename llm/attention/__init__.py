"""Ways of the same attention, chosen by name: a readable reference, and kernels that are compared with it."""

from llm.attention.choice import BACKENDS, attention_backend, resolve_attention
from llm.attention.interface import (
    Attend,
    AttentionMask,
    AttentionNeeds,
    Backend,
    ResolvedAttention,
    ScoreRule,
    Visibility,
)

__all__ = [
    "BACKENDS",
    "Attend",
    "AttentionMask",
    "AttentionNeeds",
    "Backend",
    "ResolvedAttention",
    "ScoreRule",
    "Visibility",
    "attention_backend",
    "resolve_attention",
]
