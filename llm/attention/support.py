"""What each backend cannot do: asked once before a run begins, and again by what is about to run."""

from __future__ import annotations

import inspect

import torch

from llm.attention.flash_kernels import KERNELS, missing
from llm.attention.interface import AttentionNeeds, ScoreRule
from llm.errors import AttentionBackendError

CAPPING = ("eager", "flex")
DROPPING = ("eager",)
"""Other kernels draw masks of their own, which depend on how rows are divided."""
FLASH_DTYPES = (torch.float16, torch.bfloat16)
LARGEST_FLASH_HEAD = 256
"""FlashAttention has kernels for head sizes up to this, in steps of 8."""
SMALLEST_FLEX_HEAD = 16
"""FlexAttention multiplies blocks of this size at least."""


def obstacle(name: str, needs: AttentionNeeds) -> str | None:
    """Why a backend cannot serve, with the remedy; None where it can."""
    why = _rule_obstacle(name, capped=needs.softcap, dropping=needs.dropout)
    if why is not None or name in ("eager", "sdpa"):
        return why
    if name == "flex":
        return _flex_obstacle(needs)
    if needs.device_type == "cpu":
        return None if name == "varlen" else "its kernel is for GPUs, and the device is cpu. Use varlen or auto."
    return _flash_obstacle(name, needs)


def refuse_rule(name: str, rule: ScoreRule) -> None:
    """Stop before a part of the rule is left out.

    Raises:
        AttentionBackendError: The backend does not know the cap or the dropout that the rule asks for.
    """
    _refuse(name, _rule_obstacle(name, capped=rule.softcap is not None, dropping=rule.dropout is not None))


def refuse_dtype(name: str, dtype: torch.dtype) -> None:
    """Stop before a kernel is given what it cannot read.

    Raises:
        AttentionBackendError: The dtype is not one of FlashAttention's.
    """
    _refuse(name, _dtype_obstacle(dtype))


def _refuse(name: str, why: str | None) -> None:
    if why is not None:
        raise AttentionBackendError(f"model.attention is {name!r}, which cannot be used: {why}")


def _rule_obstacle(name: str, *, capped: bool, dropping: bool) -> str | None:
    if capped and name not in CAPPING:
        return f"scores are capped, and its kernel has no cap. Use one of {', '.join(CAPPING)}, or auto."
    if dropping and name not in DROPPING:
        return (
            "model.attention_dropout is above 0, and its kernel has no masks that stay the same on any number of "
            "workers. Use eager or auto, or set the dropout to 0."
        )
    return None


def _dtype_obstacle(dtype: torch.dtype) -> str | None:
    if dtype in FLASH_DTYPES:
        return None
    return (
        f"the queries are {str(dtype).removeprefix('torch.')}, and its kernel for GPUs reads float16 and bfloat16. "
        "Use train.precision bf16, or sdpa or auto."
    )


def _flex_obstacle(needs: AttentionNeeds) -> str | None:
    if needs.device_type == "cpu":
        return (
            "on the CPU torch compiles FlexAttention without a backward pass, and uncompiled it holds all scores. "
            "Use eager, varlen or auto."
        )
    if needs.head_size < SMALLEST_FLEX_HEAD:
        return (
            f"the head size is {needs.head_size}, and its kernel takes {SMALLEST_FLEX_HEAD} or more. "
            "Use sdpa or auto, or a larger model.head_dim."
        )
    return None


def _flash_obstacle(name: str, needs: AttentionNeeds) -> str | None:
    if needs.head_size > LARGEST_FLASH_HEAD or needs.head_size % 8:
        return (
            f"the head size is {needs.head_size}, and its kernel takes multiples of 8 up to {LARGEST_FLASH_HEAD}. "
            "Use sdpa or auto, or another model.head_dim."
        )
    if not _packs_groups():
        return (
            f"varlen_attn of torch {torch.__version__} has no enable_gqa and window_size. "
            "Install a torch that has them, or use sdpa or auto."
        )
    return _dtype_obstacle(needs.dtype) or _gpu_obstacle(name)


def _gpu_obstacle(name: str) -> str | None:
    """Of this process's GPU and packages."""
    majors = KERNELS[name].majors if name in KERNELS else tuple(range(8, 100))
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if major not in majors:
            return (
                f"this GPU's compute capability is {major}.{minor}, and its kernel is written for "
                f"{' and '.join(f'{each}.x' for each in majors) if name in KERNELS else '8.x and above'}. "
                "Use sdpa or auto."
            )
    return missing(name) if name in KERNELS else None


def _packs_groups() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"enable_gqa", "window_size"} <= inspect.signature(varlen_attn).parameters.keys()
