"""Elementwise parts of a block as single autograd functions: fewer passes over memory, and less kept for the backward.

Autograd's own forms of these keep every step's result and join the gradients of slices by copying. Each has an obvious
twin that a test compares it with, and that the compiler gets, which fuses it better than is written here.
Legend: B batch, T sequence, N heads of all kinds, H query heads, G key/value heads, K head size, F hidden, D model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.rotary import Rotary, rotate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
_BACKWARDS: dict[str, Callable[..., Tensor]] = {
    "silu": torch.ops.aten.silu_backward.grad_input,
    "gelu": torch.ops.aten.gelu_backward.grad_input,
    "gelu_pytorch_tanh": partial(torch.ops.aten.gelu_backward.grad_input, approximate="tanh"),
}


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) * up of the two halves of the last dimension (arXiv:2002.05202); keeps its input alone.

    Shape: (..., 2 F) -> (..., F).
    """
    if torch.compiler.is_compiling():
        return plain_gated(gate_up, activation)
    product: Tensor = _Gated.apply(gate_up, activation)  # type: ignore[no-untyped-call]
    return product


def plain_gated(gate_up: Tensor, activation: str) -> Tensor:
    """The obvious twin of `gated`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, gate_up: Tensor, activation: str) -> Tensor:
        context.save_for_backward(gate_up)
        context.activation = activation
        gate, up = gate_up.chunk(2, dim=-1)
        return ACTIVATIONS[activation](gate).mul_(up)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (gate_up,) = context.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, ACTIVATIONS[context.activation](gate), out=grad_up)
        torch.mul(grad, up, out=grad_gate)
        _BACKWARDS[context.activation](grad_gate, gate, grad_input=grad_gate)
        return grad_gate_up, None


def rotated_heads(qkv_BTNK: Tensor, rotary: Rotary, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values out of one product, the first two turned by their positions in fp32.

    Keeps the rotary tables alone. Shape: (B, T, H + 2 G, K) -> (B, T, H, K), (B, T, G, K), (B, T, G, K).
    """
    if torch.compiler.is_compiling():
        return plain_rotated_heads(qkv_BTNK, rotary, heads, groups)
    parts: tuple[Tensor, Tensor, Tensor] = _RotatedHeads.apply(  # type: ignore[no-untyped-call]
        qkv_BTNK, rotary.cos, rotary.sin, heads, groups
    )
    return parts


def plain_rotated_heads(qkv_BTNK: Tensor, rotary: Rotary, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The obvious twin of `rotated_heads`."""
    q_BTHK, k_BTGK, v_BTGK = torch.split(qkv_BTNK, [heads, groups, groups], dim=2)
    return rotate(q_BTHK, rotary), rotate(k_BTGK, rotary), v_BTGK


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, qkv_BTNK: Tensor, cos_BT1K: Tensor, sin_BT1K: Tensor, heads: int, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        context.save_for_backward(cos_BT1K, sin_BT1K)
        qk_BTNK = qkv_BTNK[:, :, : heads + groups]
        turned_BTNK = torch.empty(qk_BTNK.shape, dtype=qkv_BTNK.dtype, device=qkv_BTNK.device)
        _turn(qk_BTNK, cos_BT1K, sin_BT1K, turned_BTNK)
        # values are copied, so that the product they lie in need not live until the backward pass
        v_BTGK = qkv_BTNK[:, :, heads + groups :].contiguous()
        return turned_BTNK[:, :, :heads], turned_BTNK[:, :, heads:], v_BTGK

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos_BT1K, sin_BT1K = context.saved_tensors
        grad_q_BTHK, grad_k_BTGK, grad_v_BTGK = grads
        B, T, H, K = grad_q_BTHK.shape
        G = grad_k_BTGK.shape[2]
        grad_BTNK = torch.empty(B, T, H + 2 * G, K, dtype=grad_q_BTHK.dtype, device=grad_q_BTHK.device)
        _turn(grad_q_BTHK, cos_BT1K, -sin_BT1K, grad_BTNK[:, :, :H])
        _turn(grad_k_BTGK, cos_BT1K, -sin_BT1K, grad_BTNK[:, :, H : H + G])
        grad_BTNK[:, :, H + G :].copy_(grad_v_BTGK)
        return grad_BTNK, None, None, None, None


def _turn(x_BTNK: Tensor, cos_BT1K: Tensor, sin_BT1K: Tensor, out_BTNK: Tensor) -> None:
    """`rotate` into memory at hand; numbers narrower than fp32 are turned in fp32 and rounded once."""
    turned_BTNK = out_BTNK if out_BTNK.dtype == cos_BT1K.dtype else torch.empty_like(out_BTNK, dtype=cos_BT1K.dtype)
    left, right = x_BTNK.to(cos_BT1K.dtype).chunk(2, dim=-1)
    turned_left, turned_right = turned_BTNK.chunk(2, dim=-1)
    torch.mul(left, cos_BT1K, out=turned_left).addcmul_(right, sin_BT1K, value=-1.0)
    torch.mul(right, cos_BT1K, out=turned_right).addcmul_(left, sin_BT1K)
    if turned_BTNK is not out_BTNK:
        out_BTNK.copy_(turned_BTNK)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension (arXiv:1910.07467), in fp32; dtype is kept.

    torch's, which is one kernel on GPUs and a dozen steps on CPUs: there it is ours, but for fp64.
    """
    ours = x.device.type == "cpu" and x.dtype == weight_D.dtype and x.dtype != torch.float64
    if not ours or torch.compiler.is_compiling():
        return plain_rms_norm(x, weight_D, eps)
    normed: Tensor = _RMSNorm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]
    return normed


def plain_rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The obvious twin of `rms_norm`."""
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


class _RMSNorm(torch.autograd.Function):
    """y = w x r with r = (mean(x^2) + eps)^-1/2.

    With g the gradient of y and u = w g: dx = r u - x r^3 mean(u x), and dw is the sum of g x r over rows.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factors = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        context.save_for_backward(x, weight_D, factors)
        normed: Tensor = (x * factors).mul_(weight_D)
        return normed.to(x.dtype)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        x, weight_D, factors = context.saved_tensors
        size = x.shape[-1]
        x_ND, grad_ND = x.reshape(-1, size).float(), grad.reshape(-1, size).float()
        factors_N1 = factors.view(-1, 1)
        grad_x_ND = grad_ND * x_ND  # first for the weight and for the mean, then the gradient's memory
        grad_weight_D = factors_N1.t() @ grad_x_ND
        means_N1 = (grad_x_ND @ weight_D.float()[:, None]).mul_(factors_N1**3 / size)
        torch.mul(grad_ND, weight_D, out=grad_x_ND)
        grad_x_ND.mul_(factors_N1).addcmul_(x_ND, means_N1, value=-1.0)
        return grad_x_ND.view_as(x).to(x.dtype), grad_weight_D[0].to(weight_D.dtype), None
