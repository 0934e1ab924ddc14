"""Recomputed activations: the same numbers bit for bit, with less kept between the passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm.activation_checkpointing import ActivationCheckpointing, run_layer
from llm.config import ModelConfig
from llm.initialization import initialize
from llm.kv_cache import KeyValueCache
from llm.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=31,
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=3,
    num_key_value_heads=1,
    intermediate_size=64,
    qk_norm=True,
)
TOKENS = torch.randint(0, 31, (2, 33), generator=torch.Generator().manual_seed(0))
DOCUMENTS = (torch.arange(32) // 11).repeat(2, 1)


def make_model(mode: ActivationCheckpointing, dtype: torch.dtype = torch.float32) -> Transformer:
    model = Transformer(CONFIG, "sdpa", mode)
    initialize(model, CONFIG, seed=3)
    return model.to(dtype)


def loss(model: Transformer) -> Tensor:
    sums = model(TOKENS[:, :-1], TOKENS[:, 1:], document_ids_BT=DOCUMENTS)
    assert isinstance(sums.objective_sum, Tensor)
    return sums.objective_sum


def saved_bytes(model: Transformer) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters not counted."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        held = loss(model)
    del held
    return sum(kept.values())


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradients_are_bit_equal_when_activations_are_recomputed(
    mode: ActivationCheckpointing, dtype: torch.dtype
) -> None:
    models = {"off": make_model("off", dtype), mode: make_model(mode, dtype)}
    losses = {mode: loss(model) for mode, model in models.items()}
    for value in losses.values():
        value.backward()
    assert torch.equal(losses["off"], losses[mode])
    expected = dict(models["off"].named_parameters())
    for name, parameter in models[mode].named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected[name].grad), name


def test_fewer_bytes_are_kept_when_activations_are_recomputed() -> None:
    kept, recomputed = saved_bytes(make_model("off")), saved_bytes(make_model("full"))
    layer_input = TOKENS[:, :-1].numel() * CONFIG.hidden_size * 4
    logits = TOKENS[:, :-1].numel() * 31 * 4
    assert recomputed <= (CONFIG.num_hidden_layers + 3) * layer_input + 3 * logits
    assert recomputed < kept / 3


def test_products_run_once_when_recomputation_is_selective() -> None:
    counts = {mode: products(make_model(mode)) for mode in ("off", "selective", "full")}
    assert counts["off"] == counts["selective"] < counts["full"]


def products(model: Transformer) -> int:
    """Matrix products of a forward and a backward pass."""
    with Count(torch.ops.aten.mm.default, torch.ops.aten.addmm.default) as counted:
        loss(model).backward()
    return counted.calls


class Count(TorchDispatchMode):
    """Counts calls of some operators."""

    def __init__(self, *operators: Any) -> None:
        super().__init__()
        self.operators = operators
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func in self.operators
        return func(*args, **(kwargs or {}))


def test_layers_run_once_when_there_is_no_backward_pass_to_come() -> None:
    model = make_model("full")
    runs = []
    model.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        loss(model)
    assert len(runs) == 1


def test_cache_gets_each_token_once_when_activations_are_recomputed() -> None:
    cache = KeyValueCache(CONFIG.num_hidden_layers)
    make_model("full").logits(TOKENS[:1, :11], cache=cache).sum().backward()
    assert [layer.length for layer in cache.layers] == [11] * CONFIG.num_hidden_layers


def test_attention_of_gpus_runs_once_when_recomputation_is_selective() -> None:
    from torch.nn.attention.varlen import varlen_attn

    heads = [torch.empty(32, 4, 8, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)]
    starts = torch.empty(3, dtype=torch.int32, device="meta")

    def layer(*inputs: Tensor) -> Any:
        q, k, v = (x * 2 for x in inputs)
        return varlen_attn(q, k, v, starts, starts, 16, 16)

    runs = {}
    modes: tuple[ActivationCheckpointing, ...] = ("selective", "full")
    for mode in modes:
        with Count(torch.ops.torch_attn._varlen_attn.default) as counted:
            run_layer(mode, layer, *heads).sum().backward()
        runs[mode] = counted.calls
    assert runs == {"selective": 1, "full": 2}
