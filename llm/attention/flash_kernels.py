"""FlashAttention 3 and 4 in the place of torch's own FlashAttention 2, where their packages are installed.

torch holds one of them for the whole process: a model's backend activates it when the model is made, and each call
makes sure that no other has been activated since.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.attention as torch_attention

from llm.errors import AttentionBackendError


class FlashKernel(NamedTuple):
    """One kernel that torch can be told to run."""

    torch_name: str
    """As torch registers it."""
    module: str
    """Which holds it."""
    majors: tuple[int, ...]
    """Compute capabilities of the GPUs that it is written for, as torch checks them."""


KERNELS = {
    "flash3": FlashKernel("FA3", "flash_attn_interface", (9,)),
    "flash4": FlashKernel("FA4", "flash_attn.cute.interface", (9, 10)),
}


def missing(name: str) -> str | None:
    """What torch lacks to run a kernel, with the remedy; None where it has all."""
    kernel = KERNELS[name]
    known: list[str] = getattr(torch_attention, "list_flash_attention_impls", list)()
    if kernel.torch_name not in known:
        return f"torch {torch.__version__} does not register {kernel.torch_name}. Install one that does, or use varlen."
    if not _is_installed(kernel.module):
        return (
            f"torch runs {kernel.torch_name} from the module {kernel.module}, which is not installed. "
            "Install FlashAttention's package of it on every node, or use varlen."
        )
    return None


def activate(name: str) -> None:
    """Make torch run the named kernel wherever it would run FlashAttention 2, from now on in this process.

    Raises:
        AttentionBackendError: The kernel or its package is missing.
    """
    why = missing(name)
    if why is not None:
        raise AttentionBackendError(f"model.attention is {name!r}, which cannot be used: {why}")
    if torch_attention.current_flash_attention_impl() != KERNELS[name].torch_name:
        torch_attention.activate_flash_attention_impl(KERNELS[name].torch_name)


def require_active(name: str) -> None:
    """Make sure that the kernel about to run is the one of this name.

    Raises:
        AttentionBackendError: Another one was activated in this process.
    """
    current = getattr(torch_attention, "current_flash_attention_impl", lambda: None)()
    wanted = KERNELS[name].torch_name if name in KERNELS else None
    if current != wanted:
        raise AttentionBackendError(
            f"attention backend {name!r} is about to run, and torch has {current or 'FlashAttention 2'} active in the "
            f"place of {wanted or 'FlashAttention 2'}: a process has one. Give all models of a process one backend."
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False
