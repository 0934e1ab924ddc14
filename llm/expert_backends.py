"""Ways of one signature to send tokens through their experts, chosen by name: a readable reference and a grouped form.

Legend: N tokens, D model, E experts, C experts chosen per token, S = N * C assignments, F hidden of one expert, M
tokens of one expert, I and O width before and after a product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.errors import ExpertsBackendError
from llm.fused import gated, plain_gated

MixExperts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, str], Tensor]
"""mix(x_ND, experts_NC, weights_NC, gate_up_projections, down_EDF, activation) -> ND in the dtype of x: the sum over a
token's C different experts of weight * down(activation(gate(x)) * up(x)). gate_up_projections has shape (E, 2 F, D),
gate first; the activation is named as in `llm.fused.ACTIVATIONS`."""

_BLACKWELL = 10
"""Major compute capability from which torch's kernel leaves the weight gradient of an expert without tokens unwritten:
github.com/pytorch/pytorch/issues/172439."""


class ResolvedExperts(NamedTuple):
    """The way that will run, and why."""

    name: str
    reason: str


def eager_experts(
    x_ND: Tensor, experts_NC: Tensor, weights_NC: Tensor, gate_up: Tensor, down_EDF: Tensor, activation: str
) -> Tensor:
    """The obvious way: each expert in turn looks for its tokens; sums in fp32. Waits for the device once per expert."""
    mixed_ND = torch.zeros_like(x_ND, dtype=torch.float32)
    for expert, (its_gate_up, its_down_DF) in enumerate(zip(gate_up.unbind(), down_EDF.unbind(), strict=True)):
        tokens_M, choices_M = torch.where(experts_NC == expert)
        hidden_MF = plain_gated(F.linear(x_ND[tokens_M], its_gate_up), activation)
        down_MD = F.linear(hidden_MF, its_down_DF)
        mixed_ND.index_add_(0, tokens_M, down_MD.float() * weights_NC[tokens_M, choices_M, None])
    return mixed_ND.to(x_ND.dtype)


def grouped_experts(
    x_ND: Tensor, experts_NC: Tensor, weights_NC: Tensor, gate_up: Tensor, down_EDF: Tensor, activation: str
) -> Tensor:
    """Assignments sorted by expert, so that each matrix is one grouped product over all of them.

    No size depends on the routing, so nothing here waits for a GPU, and nothing adds up in an order that varies.
    """
    sorted_S, order_S = experts_NC.flatten().sort(stable=True)
    upper_E = torch.arange(1, len(down_EDF) + 1, device=sorted_S.device)
    ends_E = torch.searchsorted(sorted_S, upper_E, out_int32=True)
    places_NC = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    places_NC = places_NC.view_as(experts_NC)
    x_SD: Tensor = _Dispatch.apply(x_ND, order_S, places_NC)  # type: ignore[no-untyped-call]
    hidden_SF = gated(grouped_product(x_SD, gate_up, ends_E), activation)
    down_SD = grouped_product(hidden_SF, down_EDF, ends_E)
    down_NCD: Tensor = _Return.apply(down_SD, order_S, places_NC)  # type: ignore[no-untyped-call]
    return (down_NCD * weights_NC[..., None].to(down_NCD.dtype)).sum(dim=1)


BACKENDS: dict[str, MixExperts] = {"eager": eager_experts, "grouped": grouped_experts}


def resolve_experts(name: str) -> ResolvedExperts:
    """Turn a configured name into the way that will run, with the reason for the log.

    Raises:
        ExpertsBackendError: No way has that name.
    """
    if name == "auto":
        return ResolvedExperts("grouped", "auto: one product over all experts, which waits for no device")
    experts_backend(name)
    return ResolvedExperts(name, "asked for by name")


def experts_backend(name: str) -> MixExperts:
    """The way of exactly that name.

    Raises:
        ExpertsBackendError: No way has that name; `auto` is not one.
    """
    if name == "auto":
        raise ExpertsBackendError(
            "experts backend 'auto' reached the model: it must be resolved once and logged before. "
            "Pass resolve_experts('auto').name."
        )
    if name not in BACKENDS:
        known = ", ".join(["auto", *sorted(BACKENDS)])
        raise ExpertsBackendError(f"model.experts is {name!r}, and no backend has that name. Use one of: {known}.")
    return BACKENDS[name]


def grouped_product(x_SI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Rows of x times the matrix of their expert: `x[start:end] @ weight[e].T` for each expert's rows.

    torch's grouped_mm where it serves (see `grouped_mm_serves`), else a product per expert.

    Args:
        x_SI: Rows sorted by expert.
        weight_EOI: One matrix for each expert, of the same dtype.
        ends_E: int32; where each expert's rows end, the last S.

    Returns:
        Shape: (S, O).
    """
    product_SO: Tensor = _GroupedProduct.apply(x_SI, weight_EOI, ends_E)  # type: ignore[no-untyped-call]
    return product_SO


def grouped_mm_serves(x_SI: Tensor, weight_EOI: Tensor) -> bool:
    """Whether torch's grouped_mm computes this product and both its gradients.

    It refuses rows, and on GPUs tensors, that do not begin at multiples of 16 bytes, and GPUs before Ampere. Only in
    bf16 and from Hopper on does it leave the ends of the groups on the device; elsewhere it copies them to the host,
    as a product per expert does (github.com/pytorch/pytorch/pull/161407).
    """
    if x_SI.dtype not in (torch.float32, torch.bfloat16) or x_SI.dtype != weight_EOI.dtype:
        return False
    widths = weight_EOI.shape[1:]
    if any(width * x_SI.element_size() % 16 for width in widths) or x_SI.data_ptr() % 16 or weight_EOI.data_ptr() % 16:
        return False
    if x_SI.is_cuda:
        return torch.cuda.get_device_capability(x_SI.device) >= (8, 0)
    return x_SI.device.type == "cpu"


class _GroupedProduct(torch.autograd.Function):
    """`grouped_product`. Under ZeRO 3 its saved weight is the parameter itself, gathered anew for the backward pass,
    where torch's own derivative would keep a view, and so the memory, of what the forward pass gathered."""

    @staticmethod
    def forward(context: Any, x_SI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
        """x times each expert's transposed matrix."""
        context.save_for_backward(x_SI, weight_EOI, ends_E)
        if grouped_mm_serves(x_SI, weight_EOI):
            return F.grouped_mm(x_SI, weight_EOI.transpose(1, 2), offs=ends_E)
        product_SO = x_SI.new_empty(len(x_SI), weight_EOI.shape[1])
        for rows, weight_OI in zip(_rows(ends_E), weight_EOI, strict=True):
            torch.mm(x_SI[rows], weight_OI.t(), out=product_SO[rows])
        return product_SO

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of x and of the weight, each where it is wanted."""
        x_SI, weight_EOI, ends_E = context.saved_tensors
        wants_x, wants_weight = context.needs_input_grad[:2]
        grad_SO = grads[0].contiguous()  # that of a sum is one number, repeated with stride 0
        grad_x_SI = _grad_x(grad_SO, weight_EOI, ends_E) if wants_x else None
        grad_weight_EOI = _grad_weight(grad_SO, x_SI, weight_EOI, ends_E) if wants_weight else None
        return grad_x_SI, grad_weight_EOI, None


def _grad_x(grad_SO: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    if grouped_mm_serves(grad_SO, weight_EOI):
        return F.grouped_mm(grad_SO, weight_EOI, offs=ends_E)
    grad_x_SI = grad_SO.new_empty(len(grad_SO), weight_EOI.shape[2])
    for rows, weight_OI in zip(_rows(ends_E), weight_EOI, strict=True):
        torch.mm(grad_SO[rows], weight_OI, out=grad_x_SI[rows])
    return grad_x_SI


def _grad_weight(grad_SO: Tensor, x_SI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    if not grouped_mm_serves(x_SI, weight_EOI):
        grad_weight_EOI = torch.empty_like(weight_EOI)
        for rows, grad_weight_OI in zip(_rows(ends_E), grad_weight_EOI, strict=True):
            torch.mm(grad_SO[rows].t(), x_SI[rows], out=grad_weight_OI)
        return grad_weight_EOI
    grad_weight_EOI = F.grouped_mm(grad_SO.t(), x_SI, offs=ends_E)
    if x_SI.is_cuda and torch.cuda.get_device_capability(x_SI.device)[0] >= _BLACKWELL:
        is_empty_E = ends_E == F.pad(ends_E[:-1], (1, 0))
        grad_weight_EOI.masked_fill_(is_empty_E[:, None, None], 0.0)
    return grad_weight_EOI


def _rows(ends_E: Tensor) -> Iterator[slice]:
    start = 0
    for end in ends_E.tolist():
        yield slice(start, end)
        start = end


class _Dispatch(torch.autograd.Function):
    """Each token's row once for each of its experts, in the order of the experts.

    Its gradient gathers and adds up C rows, where that of plain indexing would sort or, on a GPU, add in any order.
    """

    @staticmethod
    def forward(context: Any, x_ND: Tensor, order_S: Tensor, places_NC: Tensor) -> Tensor:
        """Row s is that of the token of assignment order[s]."""
        context.save_for_backward(places_NC)
        return x_ND[order_S // places_NC.shape[1]]

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Sum over the places of a token."""
        (places_NC,) = context.saved_tensors
        return grads[0][places_NC].sum(dim=1), None, None


class _Return(torch.autograd.Function):
    """Rows in the order of the experts, back at the tokens they belong to; its gradient is a gathering too."""

    @staticmethod
    def forward(context: Any, y_SD: Tensor, order_S: Tensor, places_NC: Tensor) -> Tensor:
        """Row (n, c) is the one at places[n, c]."""
        context.save_for_backward(order_S)
        return y_SD[places_NC]

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The inverse permutation."""
        (order_S,) = context.saved_tensors
        return grads[0].flatten(0, 1)[order_S], None, None
