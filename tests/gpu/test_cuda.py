"""The same numbers on a GPU: a state that goes to the device and back, and what is offloaded from it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from held_state import HeldState

from cluster.config import ZeroConfig
from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import Engine, MicroBatch
from cluster.engines.torch_engine import TorchEngine
from cluster.topology import Precision, Topology
from llm.config import ModelConfig, OptimizerConfig
from llm.transformer import Transformer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}  # Resume law
OFFLOADED = [
    ZeroConfig(stage=1, offload_optimizer="cpu", reduce_bucket_elements=10_000),
    ZeroConfig(stage=2, offload_optimizer="cpu", reduce_bucket_elements=10_000, overlap_communication=True),
    ZeroConfig(
        stage=3,
        offload_optimizer="cpu",
        offload_parameters="cpu",
        reduce_bucket_elements=10_000,
        parameter_persistence_threshold_elements=0,
    ),
]
MODEL = ModelConfig(
    vocab_size=67,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
)


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


@pytest.fixture(scope="module")
def _process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def deepspeed_engine(zero: ZeroConfig, precision: Precision) -> Engine:
    from cluster.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        partial(Transformer, MODEL, "sdpa"),
        optimizer=OptimizerConfig(),
        zero=zero,
        precision=precision,
        micro_batch_size=2,
        micro_batches=2,
        topology=Topology(device="cuda:0"),
    )


def train(engine: Engine, steps: range) -> list[float]:
    losses = []
    for step in steps:
        tokens = torch.randint(0, 67, (4, 17), generator=torch.Generator().manual_seed(step)).cuda()
        halves = [MicroBatch(rows[:, :-1], rows[:, 1:], torch.ones(2, 16).cuda(), None) for rows in tokens.split(2)]
        scale = torch.tensor(1 / 64, device="cuda")
        losses.append(sum(engine.accumulate(half, scale).loss_sum.item() for half in halves) / 64)
        engine.update(1e-3)
    return losses


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", OFFLOADED, ids=lambda zero: f"zero{zero.stage}")
def test_losses_equal_plain_torch_when_state_is_offloaded(zero: ZeroConfig, precision: Precision) -> None:
    plain = TorchEngine(Transformer(MODEL, "sdpa"), optimizer=OptimizerConfig(), precision=precision, device="cuda")
    offloaded = deepspeed_engine(zero, precision)
    for engine in (plain, offloaded):
        engine.load(InitialState(MODEL, 7))
    for mine, other in zip(train(offloaded, range(10)), train(plain, range(10)), strict=True):
        assert abs(mine - other) <= LOSS_TOLERANCE[precision] * other


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("zero", OFFLOADED, ids=lambda zero: f"zero{zero.stage}")
def test_state_comes_back_bit_equal_when_it_is_offloaded(zero: ZeroConfig) -> None:
    engine = deepspeed_engine(zero, "bf16")
    engine.load(InitialState(MODEL, 7))
    train(engine, range(3))
    saved = engine.snapshot()
    undisturbed = train(engine, range(3, 6))
    again = deepspeed_engine(zero, "bf16")
    again.load(HeldState(saved))
    for before, after in zip(saved, again.snapshot(), strict=True):
        assert before.scalars == after.scalars
        assert before.tensors.keys() == after.tensors.keys() >= {"master", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    assert train(again, range(3, 6)) == pytest.approx(undisturbed, rel=LOSS_TOLERANCE["bf16"])


@pytest.mark.usefixtures("_process_group")
def test_device_holds_less_when_the_optimizer_is_offloaded() -> None:
    held = []
    for zero in (ZeroConfig(stage=2, reduce_bucket_elements=10_000), OFFLOADED[1]):
        gc.collect()  # an engine is full of cycles
        before = torch.cuda.memory_allocated()
        engine = deepspeed_engine(zero, "bf16")
        engine.load(InitialState(MODEL, 7))
        train(engine, range(1))
        held.append(torch.cuda.memory_allocated() - before)
        del engine
    assert held[1] < held[0]
