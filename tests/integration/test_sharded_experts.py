"""Mixtures of experts under ZeRO on two gloo ranks, against plain torch over the whole batch: loss and gradients."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from gloo import run_ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cluster.config import ZeroConfig
from cluster.topology import Topology
from llm.experts import MixtureOfExperts

pytestmark = pytest.mark.slow

TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
"""Relative to the largest number, as for the engines (engine_matrix.GRADIENT_TOLERANCE): sums in another order."""
WIDTH, EXPERT_SIZE, EXPERTS, CHOSEN = 16, 24, 5, 2
ROWS, LENGTH, RANKS, MICRO_BATCHES = 8, 6, 2, 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a step is computed."""

    stage: Literal[2, 3]
    precision: Literal["fp32", "bf16"] = "fp32"
    backend: str = "grouped"
    recomputed: bool = False

    def __str__(self) -> str:
        return f"zero{self.stage}-{self.precision}-{self.backend}" + ("-recomputed" if self.recomputed else "")


CASES = [
    Case(stage=2),
    Case(stage=3),
    Case(stage=3, recomputed=True),
    Case(stage=3, precision="bf16"),
    Case(stage=3, backend="eager"),
]
Step = tuple[float, dict[str, Tensor]]
"""Loss and whole gradients by parameter."""


class Stack(nn.Module):
    """Two layers with their router losses; no token chooses the last expert of the first."""

    def __init__(self, backend: str, recomputed: bool) -> None:
        super().__init__()
        self.recomputed = recomputed
        self.layers = nn.ModuleList(
            MixtureOfExperts(
                hidden_size=WIDTH,
                expert_size=EXPERT_SIZE,
                num_experts=EXPERTS,
                experts_per_token=CHOSEN,
                normalize_weights=True,
                activation="silu",
                backend=backend,
            )
            for _ in range(2)
        )

    def forward(self, x_BTD: Tensor, weights_BT: Tensor) -> Tensor:
        """Sum over the tokens of a micro-batch."""
        router_loss = torch.zeros(())
        for layer in self.layers:
            out_BTD, sums = (
                checkpoint(layer, x_BTD, weights_BT, use_reentrant=False)
                if self.recomputed
                else layer(x_BTD, weights_BT)
            )
            x_BTD = x_BTD + out_BTD
            router_loss = router_loss + sums.balance_sum + 0.1 * sums.z_sum
        return (x_BTD.float().square().sum(-1) * weights_BT).sum() + router_loss


def fill(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.3, generator=generator))
            if name == "layers.0.gate.weight":
                parameter[-1] = 0.0
                parameter[-1, 0] = -100.0


def batch(precision: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_BTD = torch.randn(ROWS, LENGTH, WIDTH, generator=generator)
    x_BTD[..., 0] = 1.0
    weights_BT = torch.rand(ROWS, LENGTH, generator=generator)
    weights_BT[-1] = 0.0
    return x_BTD.to(torch.bfloat16 if precision == "bf16" else torch.float32), weights_BT


def step_in_plain_torch(precision: str) -> Step:
    model = Stack("eager", recomputed=False)
    fill(model)
    x_BTD, weights_BT = batch(precision)
    loss = model.to(x_BTD.dtype)(x_BTD, weights_BT)
    loss.backward()
    return loss.item(), {name: parameter.grad.float() for name, parameter in model.named_parameters()}


def steps_on_ranks(topology: Topology) -> dict[str, Step]:
    return {str(case): step_under_zero(topology, case) for case in CASES}


def step_under_zero(topology: Topology, case: Case) -> Step:
    import deepspeed
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_grad

    from cluster.engines.deepspeed_engine import deepspeed_settings

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # takes a compiler and a minute
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    settings = deepspeed_settings(
        zero=ZeroConfig(stage=case.stage, parameter_persistence_threshold_elements=0 if case.stage == 3 else None),
        precision=case.precision,
        clip_norm=None,
        micro_batch_size=ROWS // RANKS // MICRO_BATCHES,
        micro_batches=MICRO_BATCHES,
        world_size=RANKS,
    )
    x_BTD, weights_BT = batch(case.precision)
    # no dtype: where a CPU has no fp16, zero.Init takes one that is given for bf16, whichever it is
    with deepspeed.zero.Init(config_dict_or_path=settings, enabled=case.stage == 3):
        model = Stack(case.backend, case.recomputed)
    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0, enabled=case.stage == 3):
        fill(model)
    model.to(x_BTD.dtype)
    engine: Any = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=settings
    )[0]
    total = torch.zeros(())
    mine = slice(topology.rank, None, RANKS)
    for x_part, weights_part in zip(x_BTD[mine].split(2), weights_BT[mine].split(2), strict=True):
        loss = engine(x_part, weights_part)
        engine.backward(loss * RANKS, scale_wrt_gas=False)
        if not engine.is_gradient_accumulation_boundary():
            engine.step()
        total += loss.detach()
    dist.all_reduce(total)
    return total.item(), {
        name: safe_get_full_grad(parameter).detach().float().clone() for name, parameter in model.named_parameters()
    }


@functools.cache
def found() -> dict[str, Step]:
    return run_ranks(steps_on_ranks, RANKS)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_equal_plain_torch_over_the_whole_batch(case: Case) -> None:
    loss, gradients = found()[str(case)]
    expected_loss, expected = step_in_plain_torch(case.precision)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE[case.precision])
    assert gradients.keys() == expected.keys()
    for name, wanted in expected.items():
        gap = (gradients[name] - wanted).abs().max()
        assert gap <= TOLERANCE[case.precision] * wanted.abs().max(), name
    assert not gradients["layers.0.experts.down_proj"][-1].any()
