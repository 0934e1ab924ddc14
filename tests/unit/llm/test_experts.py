"""The mixture of experts against its twins in transformers, and sums that add up however a batch is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.expert_backends import BACKENDS
from llm.experts import MixtureOfExperts, RouterSums, choose_experts, router_sums

D, F_, E, C = 16, 24, 5, 2
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative to the largest number. fp32: sums of at most 64 terms in another order. bf16: 8 bits, so 2^-8 a rounding, of
which the grouped form has two more: of the weights, and of the products before their sum."""
REFERENCE_TOLERANCE = 1e-5
"""fp32, numbers of order 1: the same products, added up in another order."""
SPLIT_TOLERANCE = 1e-5
"""fp32, relative to the largest number: the same terms, added up in another order."""


def mixture(
    backend: str = "grouped",
    dtype: torch.dtype = torch.float32,
    expert_size: int = F_,
    normalize_weights: bool = True,
    experts_per_token: int = C,
) -> MixtureOfExperts:
    layer = MixtureOfExperts(
        hidden_size=D,
        expert_size=expert_size,
        num_experts=E,
        experts_per_token=experts_per_token,
        normalize_weights=normalize_weights,
        activation="silu",
        backend=backend,
    )
    fill(layer)
    return layer.to(dtype)


def fill(layer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(layer.named_parameters()):
            parameter.normal_(0.0, 0.3, generator=generator)


def inputs(rows: int = 3, length: int = 11, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, length, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    gap = (found.double() - wanted.double()).abs().max()
    assert gap <= tolerance * wanted.double().abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_equals_a_loop_over_tokens(backend: str) -> None:
    layer, x_BTD = mixture(backend), inputs()
    gate_up, down = layer.experts.gate_up_proj, layer.experts.down_proj
    expected = torch.zeros_like(x_BTD)
    for b, t in ((b, t) for b in range(3) for t in range(11)):
        x_D = x_BTD[b, t]
        probabilities = (layer.gate.weight @ x_D).softmax(0).tolist()
        best = sorted(range(E), key=lambda expert: -probabilities[expert])[:C]
        for expert in best:
            gate, up = (gate_up[expert] @ x_D).split(F_)
            weight = probabilities[expert] / sum(probabilities[other] for other in best)
            expected[b, t] += weight * (down[expert] @ (F.silu(gate) * up))
    assert_close(layer(x_BTD)[0], expected, TOLERANCE[torch.float32])


def qwen3(normalize_weights: bool) -> nn.Module:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = Qwen3MoeConfig(
        hidden_size=D,
        moe_intermediate_size=F_,
        num_experts=E,
        num_experts_per_tok=C,
        norm_topk_prob=normalize_weights,
    )
    return Qwen3MoeSparseMoeBlock(config)


def mixtral(normalize_weights: bool) -> nn.Module:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    assert normalize_weights
    config = MixtralConfig(hidden_size=D, intermediate_size=F_, num_local_experts=E, num_experts_per_tok=C)
    return MixtralSparseMoeBlock(config)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("make", "normalize_weights"),
    [(qwen3, False), (qwen3, True), (mixtral, True)],
    ids=["qwen3", "qwen3-normalized", "mixtral"],
)
def test_outputs_and_gradients_equal_transformers(make: Any, normalize_weights: bool, backend: str) -> None:
    reference = make(normalize_weights)
    fill(reference)
    layer = mixture(backend, normalize_weights=normalize_weights)
    layer.load_state_dict(reference.state_dict())  # strict: the same names and shapes
    x_BTD = inputs().requires_grad_()
    upstream_BTD = torch.randn(x_BTD.shape, generator=torch.Generator().manual_seed(3))
    wanted, found = reference(x_BTD), layer(x_BTD)[0]
    torch.testing.assert_close(found, wanted, atol=REFERENCE_TOLERANCE, rtol=REFERENCE_TOLERANCE)
    wanted_grads = torch.autograd.grad(
        wanted, [x_BTD, *dict(sorted(reference.named_parameters())).values()], upstream_BTD
    )
    found_grads = torch.autograd.grad(found, [x_BTD, *dict(sorted(layer.named_parameters())).values()], upstream_BTD)
    for mine, other in zip(found_grads, wanted_grads, strict=True):
        assert_close(mine, other, TOLERANCE[torch.float32])


def objective(layer: MixtureOfExperts, x_BTD: Tensor, weights_BT: Tensor) -> tuple[Tensor, RouterSums]:
    """Something that a micro-batch adds to the loss: outputs of the tokens that count, and both router losses."""
    out_BTD, sums = layer(x_BTD, weights_BT)
    return (out_BTD.square().sum(-1) * weights_BT).sum() + 3 * sums.balance_sum + 0.1 * sums.z_sum, sums


def token_weights(rows: int, length: int) -> Tensor:
    weights_BT = torch.rand(rows, length, generator=torch.Generator().manual_seed(4))
    weights_BT[0, 7:] = 0.0
    weights_BT[2, ::3] = 0.0
    weights_BT[4] = 0.0
    return weights_BT


@pytest.mark.parametrize("cut", [[6], [1] * 6, [2, 4], [3, 1, 2], [5, 1]], ids=str)
def test_sums_and_gradients_are_the_same_however_a_batch_is_split(cut: list[int]) -> None:
    x_BTD, weights_BT = inputs(6), token_weights(6, 11)
    whole = mixture("eager")
    loss, expected = objective(whole, x_BTD, weights_BT)
    loss.backward()  # type: ignore[no-untyped-call]
    layer, parts = mixture(), []
    for x_part, weights_part in zip(x_BTD.split(cut), weights_BT.split(cut), strict=True):
        part, sums = objective(layer, x_part, weights_part)
        part.backward()  # type: ignore[no-untyped-call]
        parts.append(sums)
    for name, wanted in expected._asdict().items():
        assert_close(sum(getattr(part, name) for part in parts), wanted, SPLIT_TOLERANCE)
    for mine, other in zip(layer.parameters(), whole.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert_close(mine.grad, other.grad, SPLIT_TOLERANCE)


def test_balance_loss_would_depend_on_the_split_when_taken_over_a_whole_batch() -> None:
    """The reason for the loss of a sequence, so that nobody puts the usual one back."""
    layer, x_BTD = mixture(), inputs(4)
    one_sequence = x_BTD.reshape(1, -1, D)
    split = sum(layer(row)[1].balance_sum for row in x_BTD.split(1))
    assert abs(layer(x_BTD)[1].balance_sum - split) < 1e-4
    assert abs(layer(one_sequence)[1].balance_sum - split) > 1e-2


def test_rows_and_tokens_change_nothing_when_their_weight_is_zero() -> None:
    x_BTD, weights_BT = inputs(6), token_weights(6, 11)
    altered_BTD = x_BTD.clone()
    altered_BTD[weights_BT == 0] = 1e25  # its logits' square is not an fp32 number
    altered_BTD.requires_grad_()
    layer = mixture()
    sums, expected = layer(altered_BTD, weights_BT)[1], layer(x_BTD, weights_BT)[1]
    for mine, other in zip(sums, expected, strict=True):
        assert torch.equal(mine, other)
    (gradient,) = torch.autograd.grad(sums.balance_sum + sums.z_sum, altered_BTD)
    assert torch.equal(gradient[weights_BT == 0], torch.zeros(int((weights_BT == 0).sum()), D))
    assert gradient[weights_BT > 0].any(dim=-1).all()


def test_sums_equal_the_published_formulas_when_a_sequence_is_weighted() -> None:
    x_BTD, weights_BT = inputs(6), token_weights(6, 11)
    layer = mixture()
    logits_BTE = x_BTD @ layer.gate.weight.T
    balance, z, load_E = torch.zeros(()), torch.zeros(()), torch.zeros(E)
    for logits_TE, weights_T in zip(logits_BTE, weights_BT, strict=True):
        if weights_T.sum() == 0:
            continue
        picked_TE = F.one_hot(logits_TE.topk(C).indices, E).sum(1)
        shares_T1 = (weights_T / weights_T.sum())[:, None]
        f_E = E / C * (shares_T1 * picked_TE).sum(0)
        p_E = (shares_T1 * logits_TE.softmax(-1)).sum(0)
        balance += weights_T.sum() * (f_E * p_E).sum()
        z += (weights_T * logits_TE.exp().sum(-1).log() ** 2).sum()
        load_E += (weights_T[:, None] * picked_TE).sum(0)
    sums = layer(x_BTD, weights_BT)[1]
    for mine, other in zip(sums, (balance, z, load_E), strict=True):
        assert_close(mine, other, SPLIT_TOLERANCE)
    assert not sums.load_E.requires_grad


def test_every_token_counts_one_when_there_are_no_weights() -> None:
    layer, x_BTD = mixture(), inputs()
    for mine, other in zip(layer(x_BTD)[1], layer(x_BTD, torch.ones(3, 11))[1], strict=True):
        assert torch.equal(mine, other)


def test_balance_loss_is_the_sum_of_weights_when_all_is_even() -> None:
    experts_BTC = torch.tensor([[[0, 1], [2, 3], [1, 2], [3, 0]]])
    even_BTE = torch.zeros(1, 4, 4)
    sums = router_sums(even_BTE, even_BTE.softmax(-1), experts_BTC, torch.full((1, 4), 0.5))
    assert sums.balance_sum.item() == pytest.approx(2.0)
    assert sums.load_E.tolist() == [1.0] * 4


def test_ties_go_to_the_lower_expert() -> None:
    probabilities_BTE = torch.tensor([[[0.1, 0.3, 0.3, 0.3], [0.25] * 4, [0.0, 0.0, 0.0, 1.0]]])
    assert choose_experts(probabilities_BTE, 2).tolist() == [[[1, 2], [0, 1], [3, 0]]]


def test_experts_are_those_of_topk_when_there_are_no_ties() -> None:
    probabilities_BTE = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert torch.equal(choose_experts(probabilities_BTE, 8), probabilities_BTE.topk(8).indices)


def test_router_is_fp32_when_the_model_is_bf16() -> None:
    layer, x_BTD = mixture(dtype=torch.bfloat16), inputs(dtype=torch.bfloat16)
    out_BTD, sums = layer(x_BTD)
    assert out_BTD.dtype == torch.bfloat16
    assert {each.dtype for each in sums} == {torch.float32}
    assert torch.equal(layer.gate(x_BTD), F.linear(x_BTD.float(), layer.gate.weight.float()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_router_stays_fp32_and_experts_compute_in_bf16_under_autocast(backend: str) -> None:
    layer, x_BTD = mixture(backend), inputs().requires_grad_()
    expected_out, expected = layer(x_BTD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out_BTD, sums = layer(x_BTD)
    assert out_BTD.dtype == torch.bfloat16
    assert_close(out_BTD.float(), expected_out, TOLERANCE[torch.bfloat16])
    for mine, other in zip(sums, expected, strict=True):
        assert torch.equal(mine, other)
    out_BTD.float().sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_bit_equal_when_recomputed(backend: str, dtype: torch.dtype) -> None:
    layers = [mixture(backend, dtype), mixture(backend, dtype)]
    x_BTD, weights_BT = inputs(dtype=dtype).requires_grad_(), torch.rand(3, 11)
    kept = layers[0](x_BTD, weights_BT)
    again = checkpoint(layers[1], x_BTD, weights_BT, use_reentrant=False)
    for out_BTD, sums in (kept, again):
        (out_BTD.float().square().sum() + sums.balance_sum + sums.z_sum).backward()
    assert torch.equal(kept[0], again[0])
    for mine, other in zip(layers[1].parameters(), layers[0].parameters(), strict=True):
        assert mine.grad is not None
        assert torch.equal(mine.grad, other.grad)


@pytest.mark.parametrize("frozen", ["experts.gate_up_proj", "experts.down_proj", "gate.weight"])
def test_gradients_are_right_when_one_parameter_is_frozen(frozen: str) -> None:
    layer, free = mixture(), mixture("eager")
    layer.get_parameter(frozen).requires_grad_(False)
    for each in (layer, free):
        each(inputs())[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        if name == frozen:
            assert parameter.grad is None
        else:
            assert_close(parameter.grad, free.get_parameter(name).grad, TOLERANCE[torch.float32])
