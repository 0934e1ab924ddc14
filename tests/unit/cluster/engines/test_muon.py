"""Muon of our own against torch's: one matrix, and a whole model of which only some parameters are its business."""

from __future__ import annotations

import pytest
import torch

from cluster.engines.flat_state import Placement
from cluster.engines.initial_state import InitialState
from cluster.engines.muon import Adjustment, Muon, orthogonalized, rate_factor
from cluster.engines.protocol import Fragment, MicroBatch
from cluster.engines.torch_engine import TorchEngine
from llm.accounting import parameter_parts
from llm.config import ModelConfig, OptimizerConfig
from llm.transformer import Transformer

SHAPES = [(8, 8), (6, 17), (17, 6), (1, 5)]
MODEL = ModelConfig(
    vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    tie_word_embeddings=False,
)  # fmt: skip
CONFIG = OptimizerConfig(name="muon", learning_rate=1e-2, gradient_clip_norm=0.5)
LAYER_MATRICES = {
    f"model.layers.{layer}.{name}_proj.weight"
    for layer in (0, 1)
    for name in ("self_attn.qkv", "self_attn.o", "mlp.gate_up", "mlp.down")
}
FP32_TOLERANCE = 1e-4  # five iterations enlarge a small singular value up to 3.4445^5 = 485 times: 485 * 2^-24 and more


def matrix(shape: tuple[int, int], seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("adjustment", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_update_is_bit_equal_to_torch_when_in_bf16(
    shape: tuple[int, int], nesterov: bool, adjustment: Adjustment
) -> None:
    mine, reference = torch.nn.Parameter(matrix(shape)), torch.nn.Parameter(matrix(shape))
    rule = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "ns_steps": 4}
    optimizer = Muon(
        [{"params": [mine], "weight_decay": 0.1, "name": "muon"}],
        adjustment=adjustment,
        arithmetic=torch.bfloat16,
        **rule,  # type: ignore[arg-type]
    )
    fragment = Fragment("weight", "muon", shape, 0, mine.numel())
    optimizer.place([Placement(fragment, mine, 0)], "cpu", lambda name, shape: [shape[0]], partitioned=False)
    torchs = torch.optim.Muon([reference], weight_decay=0.1, adjust_lr_fn=adjustment, **rule)  # type: ignore[arg-type]
    for step in range(3):
        mine.grad, reference.grad = matrix(shape, step), matrix(shape, step)
        optimizer.step()
        torchs.step()
        assert torch.equal(mine.grad, matrix(shape, step)), "the gradient was changed"
    assert torch.equal(mine, reference)
    assert torch.equal(optimizer.state[mine]["momentum_buffer"], torchs.state[reference]["momentum_buffer"])


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalized_in_fp32_equals_float64_when_rounded(shape: tuple[int, int]) -> None:
    exact = orthogonalized(matrix(shape), 5, torch.float64)
    close = orthogonalized(matrix(shape), 5, torch.float32)
    assert close.dtype == torch.float32
    assert (close - exact).abs().max() < FP32_TOLERANCE


def test_orthogonalized_has_singular_values_around_one_when_the_matrix_has_not() -> None:
    stretched = matrix((12, 30)) * torch.logspace(0, -1, 30)
    values = torch.linalg.svdvals(orthogonalized(stretched, 5, torch.float32))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_rate_factor_follows_the_shape_when_adjusted() -> None:
    assert rate_factor("match_rms_adamw", (100, 25)) == pytest.approx(2.0)
    assert rate_factor("original", (100, 25)) == pytest.approx(2.0)
    assert rate_factor("original", (25, 100)) == 1.0


def test_each_parameter_takes_its_own_rule_when_a_model_is_updated() -> None:
    engine = TorchEngine(Transformer(MODEL, "sdpa"), optimizer=CONFIG, precision="bf16")
    engine.load(InitialState(MODEL, seed=3))
    masters = {
        held.fragment.name: torch.nn.Parameter(held.tensors["master"].view(held.fragment.shape))
        for held in engine.snapshot()
    }
    # torch's Muon takes a parameter for one matrix: it is given views of those that lie in one parameter
    hidden = {
        name: [torch.nn.Parameter(rows) for rows in masters[name].detach().split(rows_of(name, masters[name].shape))]
        for name in sorted(LAYER_MATRICES)
    }
    others = {name: master for name, master in masters.items() if name not in LAYER_MATRICES}
    assert sorted({name for name in others if others[name].ndim == 2}) == [
        "lm_head.weight",
        "model.embed_tokens.weight",
    ]
    muon = torch.optim.Muon(
        [rows for held in hidden.values() for rows in held], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    decayed = [master for master in others.values() if master.ndim == 2]
    norms = [master for master in others.values() if master.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    for step in range(3):
        engine.accumulate(batch(step), torch.tensor(1.0))
        for name, gradient in engine.gradients().items():
            masters[name].grad = gradient
        norm = torch.nn.utils.clip_grad_norm_([masters[held.fragment.name] for held in engine.snapshot()], 0.5)
        assert norm > 0.5, "nothing was clipped"
        assert engine.update(1e-2) == norm
        for name, matrices in hidden.items():
            for rows, gradient in zip(
                matrices, masters[name].grad.split([len(rows) for rows in matrices]), strict=True
            ):
                rows.grad = gradient
        muon.step()
        adamw.step()
    for held in engine.snapshot():
        name = held.fragment.name
        assert torch.equal(held.tensors["master"].view(held.fragment.shape), masters[name]), name
        states = {"master", "momentum_buffer"} if name in LAYER_MATRICES else {"master", "exp_avg", "exp_avg_sq"}
        assert held.tensors.keys() == states, name
        assert (held.fragment.group == "muon") == (name in LAYER_MATRICES), name


def rows_of(name: str, shape: torch.Size) -> list[int]:
    return list(parameter_parts(name, shape, MODEL).values())


def batch(seed: int) -> MicroBatch:
    tokens = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(seed))
    return MicroBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.ones(2, 8), None)
