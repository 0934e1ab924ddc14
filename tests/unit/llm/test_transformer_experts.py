"""A model with experts: its parameters, what its routers add to the objective, and what does not change that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm.accounting import parameter_parts, parameter_shapes
from llm.config import ModelConfig
from llm.initialization import initialize
from llm.kv_cache import KeyValueCache
from llm.loss import LossSums
from llm.transformer import Transformer

TOLERANCE = 1e-5
"""fp32 through two layers, with sums over other rows."""
TOKENS = torch.randint(0, 31, (4, 18), generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.ones(4, 17)
WEIGHTS[1, 9:] = 0
WEIGHTS[3] = 0


def make_model(**changes: Any) -> Transformer:
    config = ModelConfig(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        **{"num_experts": 4, "moe_intermediate_size": 12, **changes},
    )
    model = Transformer(config, "sdpa")
    initialize(model, config, seed=3)
    return model


def sums_of(model: Transformer, rows: slice = slice(4)) -> LossSums:
    tokens = TOKENS[rows]
    sums = model(tokens[:, :-1], tokens[:, 1:], WEIGHTS[rows])
    assert isinstance(sums, LossSums)
    return sums


def test_parameters_are_those_of_the_accounting_when_there_are_experts() -> None:
    model = make_model()
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert found == parameter_shapes(model.config)
    assert list(found) == list(parameter_shapes(model.config))


def test_each_expert_begins_with_numbers_of_its_own() -> None:
    experts = make_model().model.layers[0].mlp.experts
    gates = experts.gate_up_proj.detach().flatten(0, 1).split(12)
    assert len({float(gate[0, 0]) for gate in gates}) == 8
    parts = parameter_parts("model.layers.0.mlp.experts.down_proj", (4, 16, 12), make_model().config)
    assert list(parts.items())[1] == ("model.layers.0.mlp.experts.1.down_proj.weight", 16)
    deviation = float(experts.down_proj.detach().std())
    assert deviation == pytest.approx(0.3 / 2, rel=0.15), "what writes to the residual stream is scaled by depth"


def test_objective_is_the_loss_and_the_weighted_router_losses() -> None:
    sums = sums_of(make_model(router_aux_loss_coef=0.5, router_z_loss_coef=0.25))
    wanted = sums.loss_sum + 0.5 * sums.terms["router_balance"] + 0.25 * sums.terms["router_z"]
    torch.testing.assert_close(sums.objective_sum, wanted)
    without = sums_of(make_model(router_aux_loss_coef=0.0, router_z_loss_coef=0.0))
    assert torch.equal(without.objective_sum, without.loss_sum)
    assert torch.equal(without.loss_sum, sums.loss_sum)


def test_loads_count_every_choice_of_every_counted_token() -> None:
    sums = sums_of(make_model())
    assert sums.terms["expert_load"].shape == (2, 4)
    assert torch.equal(sums.terms["expert_load"].sum(dim=1), torch.full((2,), 2 * float(WEIGHTS.sum())))


def test_sums_and_gradients_are_the_same_when_rows_are_divided_otherwise() -> None:
    whole, parts = make_model(), make_model()
    together = sums_of(whole)
    together.objective_sum.backward()
    apart = [sums_of(parts, rows) for rows in (slice(0, 1), slice(1, 4))]
    for part in apart:
        part.objective_sum.backward()
    for name in together.terms:
        torch.testing.assert_close(
            together.terms[name], sum(part.terms[name] for part in apart), rtol=TOLERANCE, atol=TOLERANCE
        )
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=TOLERANCE, atol=TOLERANCE)


def test_tokens_are_the_same_with_a_cache_when_there_are_experts() -> None:
    model = make_model()
    whole = model.logits(TOKENS[:1])
    cache = KeyValueCache(2)
    pieces = [model.logits(TOKENS[:1, start:end], cache=cache) for start, end in ((0, 7), (7, 8), (8, 18))]
    torch.testing.assert_close(whole, torch.cat(pieces, dim=1), rtol=TOLERANCE, atol=TOLERANCE)
