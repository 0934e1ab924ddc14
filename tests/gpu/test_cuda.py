"""The same numbers on a GPU: backends against the reference, and a state that goes to the device and back."""

from __future__ import annotations

import pytest
import torch

from cluster.engine import MicroBatch
from cluster.initial_state import InitialState
from cluster.torch_engine import TorchEngine
from llm.attention import attention_backend, causal_mask, document_mask
from llm.config import ModelConfig, OptimizerConfig
from llm.transformer import Transformer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BF16_TOLERANCE = 2e-2  # bf16 keeps 8 bits, and two kernels add up in another order
MODEL = ModelConfig(
    vocab_size=67,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
)


@pytest.mark.parametrize("documents", [False, True])
def test_fused_attention_equals_the_reference_on_a_gpu(documents: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 33, heads, 16, generator=draw).cuda().bfloat16() for heads in (4, 2, 2))
    ids = (torch.arange(33) // 11).repeat(2, 1).cuda()
    mask = document_mask(ids, q.dtype) if documents else causal_mask(33, 33, q.dtype, q.device)
    fused, reference = (attention_backend(name)(q, k, v, mask) for name in ("sdpa", "eager"))
    assert torch.allclose(fused, reference, atol=BF16_TOLERANCE, rtol=BF16_TOLERANCE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_comes_back_bit_equal_from_a_gpu(precision: str) -> None:
    engine = TorchEngine(
        Transformer(MODEL, "sdpa"),
        optimizer=OptimizerConfig(),
        precision="bf16" if precision == "bf16" else "fp32",
        device="cuda",
    )
    initial = InitialState(MODEL, 7)
    engine.load(initial)
    for held in engine.snapshot():
        assert torch.equal(held.tensors["master"], initial.read(held.fragment, "master"))
    tokens = torch.randint(0, 67, (2, 17), generator=torch.Generator().manual_seed(0)).cuda()
    batch = MicroBatch(tokens[:, :-1], tokens[:, 1:], torch.ones(2, 16, device="cuda"), None)
    losses = []
    for _ in range(5):
        losses.append(engine.accumulate(batch, torch.tensor(1 / 32, device="cuda")).loss_sum.item())
        engine.update(1e-2)
    assert losses[-1] < losses[0]
