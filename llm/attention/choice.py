"""Backends by name, and what `auto` becomes."""

from __future__ import annotations

from llm.attention.eager import EAGER
from llm.attention.flash_kernels import KERNELS, activate
from llm.attention.flex import FLEX
from llm.attention.interface import AttentionNeeds, Backend, ResolvedAttention
from llm.attention.sdpa import SDPA
from llm.attention.support import obstacle
from llm.attention.varlen import varlen_backend
from llm.errors import AttentionBackendError

BACKENDS = {
    backend.name: backend for backend in (EAGER, SDPA, varlen_backend("varlen"), FLEX, *map(varlen_backend, KERNELS))
}


def attention_backend(name: str) -> Backend:
    """The backend of exactly that name, its kernel made torch's own where torch has to be told.

    Raises:
        AttentionBackendError: No backend has that name; `auto` is not one. Or its kernel is not installed.
    """
    if name == "auto":
        raise AttentionBackendError(
            "attention backend 'auto' reached the model: it must be resolved once and logged before. "
            "Pass resolve_attention('auto', needs).name."
        )
    backend = _known(name)
    if name in KERNELS:
        activate(name)
    return backend


def resolve_attention(name: str, needs: AttentionNeeds) -> ResolvedAttention:
    """Turn a configured name into the backend that will run, with the reason for the log.

    Raises:
        AttentionBackendError: No backend has that name, or it cannot serve the needs.
    """
    if name == "auto":
        return _automatic(needs)
    _known(name)
    why = obstacle(name, needs)
    if why is not None:
        raise AttentionBackendError(f"model.attention is {name!r}, which cannot be used: {why}")
    return ResolvedAttention(name, "asked for by name")


def _known(name: str) -> Backend:
    if name not in BACKENDS:
        known = ", ".join(["auto", *sorted(BACKENDS)])
        raise AttentionBackendError(f"model.attention is {name!r}, and no backend has that name. Use one of: {known}.")
    return BACKENDS[name]


def _automatic(needs: AttentionNeeds) -> ResolvedAttention:
    """FlashAttention 3 and 4 are never chosen: they change torch for the whole process."""
    if needs.softcap:
        # Outside training lengths change all the time, and each new one would be compiled.
        if needs.training and obstacle("flex", needs) is None:
            return ResolvedAttention("flex", "auto: capped scores, in a kernel compiled for them")
        return ResolvedAttention("eager", "auto: capped scores, for which no fused kernel serves here")
    if needs.dropout:
        return ResolvedAttention("eager", "auto: attention dropout, for which no fused kernel serves")
    if not (needs.documents or needs.window):
        return ResolvedAttention("sdpa", "auto: torch's fused kernels run on every device and need no extra package")
    why = obstacle("varlen", needs)
    if why is None:
        return ResolvedAttention("varlen", "auto: work shrinks with the documents and windows")
    return ResolvedAttention("sdpa", f"auto: not varlen, because {why.split('. ')[0]}")
