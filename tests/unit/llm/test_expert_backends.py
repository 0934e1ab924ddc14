"""Ways of computing experts against each other, and the eager one against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm import expert_backends
from llm.errors import ExpertsBackendError
from llm.expert_backends import (
    BACKENDS,
    ResolvedExperts,
    eager_experts,
    experts_backend,
    grouped_experts,
    grouped_mm_serves,
    grouped_product,
    resolve_experts,
)
from llm.fused import plain_gated

D, F_, E, C = 16, 24, 5, 2
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative to the largest number. fp32: sums of at most 64 terms in another order. bf16: 8 bits, so 2^-8 a rounding, of
which the grouped form has two more: of the weights, and of the products before their sum."""


def matrices(expert_size: int = F_, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(E, 2 * expert_size, D), (E, D, expert_size)]
    gate_up, down = ((torch.randn(shape, generator=generator) * 0.3).to(dtype).requires_grad_() for shape in shapes)
    return gate_up, down


def tokens_and_weights(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x_ND = torch.randn(tokens, D, generator=generator).to(dtype).requires_grad_()
    return x_ND, torch.rand(tokens, C, generator=generator).requires_grad_()


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    gap = (found.double() - wanted.double()).abs().max()
    assert gap <= tolerance * wanted.double().abs().max()


def chosen(kind: str, tokens: int) -> Tensor:
    """Experts of each token, best first."""
    if kind == "one takes all":  # experts 0 and 3 have every token, the others none
        return torch.tensor([[3, 0]]).repeat(tokens, 1)
    if kind == "last alone":  # expert 4 has every token, 1 all but one
        return torch.tensor([[4, 1]] * (tokens - 1) + [[4, 2]])
    scores = torch.rand(tokens, E, generator=torch.Generator().manual_seed(2))
    return scores.topk(C).indices


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "bf16"])
@pytest.mark.parametrize("expert_size", [F_, 7], ids=["grouped_mm", "slices"])
@pytest.mark.parametrize("kind", ["spread", "one takes all", "last alone"])
@pytest.mark.parametrize("tokens", [1, 33])
def test_grouped_equals_eager_with_gradients_when_loads_differ(
    tokens: int, kind: str, expert_size: int, dtype: torch.dtype
) -> None:
    x_ND, weights_NC = tokens_and_weights(tokens, dtype)
    gate_up, down_EDF = matrices(expert_size, dtype)
    upstream_ND = torch.randn(tokens, D, generator=torch.Generator().manual_seed(5)).to(dtype)
    assert grouped_mm_serves(x_ND, gate_up) == (expert_size == F_)
    results = []
    for mix in (eager_experts, grouped_experts):
        out_ND = mix(x_ND, chosen(kind, tokens), weights_NC, gate_up, down_EDF, "silu")
        results.append((out_ND, *torch.autograd.grad(out_ND, [x_ND, weights_NC, gate_up, down_EDF], upstream_ND)))
    for eager, grouped in zip(*results, strict=True):
        assert_close(grouped, eager, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "bf16"])
def test_grouped_is_the_same_bit_for_bit_when_the_gate_is_its_obvious_twin(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    inputs = [*tokens_and_weights(33, dtype), *matrices(dtype=dtype)]

    def results() -> list[Tensor]:
        x_ND, weights_NC, gate_up, down_EDF = inputs
        out_ND = grouped_experts(x_ND, chosen("spread", 33), weights_NC, gate_up, down_EDF, "silu")
        return [out_ND, *torch.autograd.grad(out_ND.square().sum(), inputs)]

    fused = results()
    monkeypatch.setattr(expert_backends, "gated", plain_gated)
    assert all(torch.equal(one, other) for one, other in zip(fused, results(), strict=True))


def test_eager_equals_a_loop_over_tokens() -> None:
    x_ND, weights_NC = tokens_and_weights(9)
    gate_up, down_EDF = matrices()
    experts_NC = chosen("spread", 9)
    expected = torch.zeros(9, D)
    for n, c in ((n, c) for n in range(9) for c in range(C)):
        expert = int(experts_NC[n, c])
        gate, up = (gate_up[expert] @ x_ND[n]).split(F_)
        expected[n] += weights_NC[n, c] * (down_EDF[expert] @ (gate / (1 + (-gate).exp()) * up))
    found = eager_experts(x_ND, experts_NC, weights_NC, gate_up, down_EDF, "silu")
    assert_close(found, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("expert_size", [F_, 7], ids=["grouped_mm", "slices"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_expert_without_tokens_has_a_gradient_of_zero(backend: str, expert_size: int) -> None:
    gate_up, down_EDF = matrices(expert_size)
    x_ND, weights_NC = tokens_and_weights(4)
    out_ND = BACKENDS[backend](x_ND, chosen("one takes all", 4), weights_NC, gate_up, down_EDF, "silu")
    for gradient in torch.autograd.grad(out_ND.sum(), [gate_up, down_EDF]):
        assert [bool(part.any()) for part in gradient] == [True, False, False, True, False]


@pytest.mark.parametrize("expert_size", [F_, 7], ids=["grouped_mm", "slices"])
def test_matrices_are_kept_and_not_views_of_them_when_grouped(expert_size: int) -> None:
    """ZeRO 3 frees a parameter after the forward pass, which a view that waits for the backward pass would prevent."""
    gate_up, down_EDF = matrices(expert_size)
    x_ND, weights_NC = tokens_and_weights(4)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        grouped_experts(x_ND, chosen("spread", 4), weights_NC, gate_up, down_EDF, "silu")
    for matrix in (gate_up, down_EDF):
        same = [each for each in kept if each.untyped_storage().data_ptr() == matrix.untyped_storage().data_ptr()]
        assert len(same) == 1
        assert same[0].is_leaf


@pytest.mark.parametrize("width", [F_, 7], ids=["grouped_mm", "slices"])
def test_product_and_gradients_equal_plain_ones_when_the_incoming_gradient_is_one_number(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_SI = torch.randn(9, D, generator=generator).requires_grad_()
    weight_EOI = torch.randn(3, width, D, generator=generator).requires_grad_()
    found = grouped_product(x_SI, weight_EOI, torch.tensor([4, 4, 9], dtype=torch.int32))
    wanted = torch.cat([x_SI[:4] @ weight_EOI[0].T, x_SI[4:] @ weight_EOI[2].T])
    assert_close(found, wanted, TOLERANCE[torch.float32])
    gradients = [torch.autograd.grad(out.sum(), [x_SI, weight_EOI]) for out in (found, wanted)]
    for mine, other in zip(*gradients, strict=True):
        assert_close(mine, other, TOLERANCE[torch.float32])


@pytest.mark.parametrize("frozen", range(4), ids=["x", "weights", "gate_up", "down"])
def test_gradients_are_right_when_one_input_is_frozen(frozen: int) -> None:
    inputs = [*tokens_and_weights(9), *matrices()]
    inputs[frozen] = inputs[frozen].detach()
    x_ND, *others = inputs
    results = []
    for mix in (eager_experts, grouped_experts):
        out_ND = mix(x_ND, chosen("spread", 9), *others, "silu")
        results.append(torch.autograd.grad(out_ND.square().sum(), [each for each in inputs if each.requires_grad]))
    for eager, grouped in zip(*results, strict=True):
        assert_close(grouped, eager, TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("dtype", "widths", "serves"),
    [
        (torch.float32, (4, 8), True),
        (torch.float32, (4, 6), False),
        (torch.bfloat16, (16, 8), True),
        (torch.bfloat16, (4, 8), False),
        (torch.float64, (8, 8), False),
    ],
    ids=str,
)
def test_grouped_mm_is_used_exactly_where_torch_takes_it(
    dtype: torch.dtype, widths: tuple[int, int], serves: bool
) -> None:
    x_SI = torch.ones(3, widths[1], dtype=dtype, requires_grad=True)
    weight_EOI = torch.ones(2, *widths, dtype=dtype, requires_grad=True)
    ends_E = torch.tensor([1, 3], dtype=torch.int32)

    def forward_and_backward() -> None:
        F.grouped_mm(x_SI, weight_EOI.transpose(1, 2), offs=ends_E).square().sum().backward()  # type: ignore[no-untyped-call]

    assert grouped_mm_serves(x_SI, weight_EOI) == serves
    if serves:
        forward_and_backward()
        return
    with pytest.raises(RuntimeError):
        forward_and_backward()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", ResolvedExperts("grouped", "auto: one product over all experts, which waits for no device")),
        ("eager", ResolvedExperts("eager", "asked for by name")),
        ("grouped", ResolvedExperts("grouped", "asked for by name")),
    ],
)
def test_name_resolves_with_a_reason_when_known(name: str, expected: ResolvedExperts) -> None:
    assert resolve_experts(name) == expected


def test_name_is_refused_when_unknown() -> None:
    with pytest.raises(ExpertsBackendError) as error:
        resolve_experts("megablocks")
    assert str(error.value) == (
        "model.experts is 'megablocks', and no backend has that name. Use one of: auto, eager, grouped."
    )


def test_auto_is_refused_when_not_resolved_before() -> None:
    with pytest.raises(ExpertsBackendError) as error:
        experts_backend("auto")
    assert str(error.value) == (
        "experts backend 'auto' reached the model: it must be resolved once and logged before. "
        "Pass resolve_experts('auto').name."
    )
