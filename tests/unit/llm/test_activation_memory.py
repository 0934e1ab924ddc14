"""Bytes of activations, against what autograd keeps and what torch's profiler sees allocated."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from llm.activation_checkpointing import ActivationCheckpointing
from llm.activation_memory import activation_bytes, peak_bytes
from llm.config import ModelConfig
from llm.initialization import initialize
from llm.memory import Arithmetic, MicroBatch, loss_bytes
from llm.transformer import Transformer

GPT2 = {
    "position_embedding": "learned",
    "max_position_embeddings": 256,
    "gated_mlp": False,
    "hidden_act": "gelu_pytorch_tanh",
    "normalization": "layer_norm",
    "attention_bias": True,
    "mlp_bias": True,
}
SEQUENCES, SEQ_LEN = 2, 48
PEAK_TOLERANCE = 0.07
"""The order in which autograd frees what it has used is simplified: within 5 % where this was written."""


def shape(**fields: object) -> ModelConfig:
    plain = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 56,
    }
    return ModelConfig(**{**plain, **fields})  # type: ignore[arg-type]


SHAPES = {
    "Llama": shape(),
    "GPT-2": shape(**GPT2),
    "grouped": shape(num_key_value_heads=2),
    "one key, untied": shape(num_key_value_heads=1, tie_word_embeddings=False),
    "odd": shape(hidden_size=21, num_attention_heads=3, head_dim=10, intermediate_size=37),
    "head norms": shape(qk_norm=True, num_key_value_heads=2),
    "head norms, learned": shape(qk_norm=True, **GPT2),
    "sandwich": shape(sandwich_norm=True),
    "windows": shape(sliding_window=7, layer_types=("sliding_attention", "full_attention")),
    "dropout": shape(embedding_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1),
}
CAPPED = shape(attn_logit_softcapping=9.0)  # which no fused kernel does
VARIANTS = [
    *[(name, config, attention) for name, config in SHAPES.items() for attention in ("eager", "sdpa")],
    ("capped", CAPPED, "eager"),
]


def make_model(
    config: ModelConfig, attention: str, arithmetic: Arithmetic, mode: ActivationCheckpointing
) -> Transformer:
    model = Transformer(config, attention, mode)
    initialize(model, config, seed=1)
    return model.to(torch.bfloat16 if arithmetic == "bf16" else torch.float32)


def kept_bytes(config: ModelConfig, batch: MicroBatch, mode: ActivationCheckpointing = "off") -> int:
    """Distinct memory that autograd keeps after the forward pass, parameters not counted."""
    model = make_model(config, batch.attention, batch.arithmetic, mode)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    tokens = torch.zeros(batch.sequences, batch.seq_len, dtype=torch.long)
    documents = (torch.arange(batch.seq_len) // 20).repeat(batch.sequences, 1) if batch.documents else None
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() and tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    narrow = batch.arithmetic == "autocast"
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if narrow else contextlib.nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums = model(tokens, tokens, document_ids_BT=documents)
    del sums
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("arithmetic", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize(
    ("config", "attention"), [each[1:] for each in VARIANTS], ids=[f"{each[0]}-{each[2]}" for each in VARIANTS]
)
def test_kept_bytes_equal_autograd_when_nothing_is_recomputed(
    config: ModelConfig, attention: str, arithmetic: Arithmetic
) -> None:
    batch = MicroBatch(sequences=SEQUENCES, seq_len=SEQ_LEN, arithmetic=arithmetic, attention=attention)
    expected = activation_bytes(config, batch).total + loss_bytes(config, batch).kept
    assert kept_bytes(config, batch) == expected


@pytest.mark.parametrize("arithmetic", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_kept_bytes_equal_autograd_when_documents_are_masked(attention: str, arithmetic: Arithmetic) -> None:
    batch = MicroBatch(sequences=SEQUENCES, seq_len=SEQ_LEN, arithmetic=arithmetic, attention=attention, documents=True)
    for config in (SHAPES["grouped"], SHAPES["windows"]):
        expected = activation_bytes(config, batch).total + loss_bytes(config, batch).kept
        assert kept_bytes(config, batch) == expected


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_kept_bytes_equal_autograd_when_there_is_one_sequence(attention: str) -> None:
    batch = MicroBatch(sequences=1, seq_len=SEQ_LEN, arithmetic="fp32", attention=attention)
    for config in (SHAPES["Llama"], SHAPES["grouped"], SHAPES["one key, untied"]):
        expected = activation_bytes(config, batch).total + loss_bytes(config, batch).kept
        assert kept_bytes(config, batch) == expected


@pytest.mark.parametrize("arithmetic", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_inputs_of_layers_alone_are_kept_when_layers_are_recomputed(name: str, arithmetic: Arithmetic) -> None:
    batch = MicroBatch(sequences=SEQUENCES, seq_len=SEQ_LEN, arithmetic=arithmetic, attention="sdpa")
    full, off = (activation_bytes(SHAPES[name], batch, mode) for mode in ("full", "off"))
    expected = full.layers + full.ends + loss_bytes(SHAPES[name], batch).kept  # tables are kept, and not by autograd
    assert kept_bytes(SHAPES[name], batch, "full") == expected
    assert full.recomputed == off.layers // SHAPES[name].num_hidden_layers


def allocated_peak(config: ModelConfig, batch: MicroBatch, mode: ActivationCheckpointing) -> int:
    """The most that forward and backward hold at a time, gradients of the parameters being there before."""
    model = make_model(config, batch.attention, batch.arithmetic, mode)
    tokens = torch.zeros(batch.sequences, batch.seq_len, dtype=torch.long)
    model(tokens, tokens).objective_sum.backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(tokens, tokens).objective_sum.backward()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


PEAKS = {
    "loss": shape(vocab_size=1000, hidden_size=64, num_hidden_layers=2),
    "feed-forward": shape(hidden_size=64, intermediate_size=800, num_hidden_layers=2),
    "plain feed-forward": shape(hidden_size=64, intermediate_size=800, num_hidden_layers=2, **GPT2),
    "attention": shape(hidden_size=64, intermediate_size=32, num_hidden_layers=2),
}


@pytest.mark.parametrize("mode", ["off", "full"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("config", PEAKS.values(), ids=PEAKS.keys())
def test_peak_is_close_to_what_is_allocated_when_a_micro_batch_is_computed(
    config: ModelConfig, attention: str, mode: ActivationCheckpointing
) -> None:
    batch = MicroBatch(sequences=4, seq_len=256, arithmetic="fp32", attention=attention)
    assert peak_bytes(config, batch, mode) == pytest.approx(allocated_peak(config, batch, mode), rel=PEAK_TOLERANCE)


def test_gpus_keep_less_when_norms_are_one_kernel() -> None:
    cpu, gpu = (
        MicroBatch(sequences=1, seq_len=SEQ_LEN, arithmetic="bf16", attention="sdpa", device_type=kind)
        for kind in ("cpu", "cuda")
    )
    plain = shape()
    saved = activation_bytes(plain, cpu).layers - activation_bytes(plain, gpu).layers
    assert saved == 3 * 2 * SEQ_LEN * 32 * (8 - 2)  # two norms a layer: two fp32 numbers become one of bf16


def test_expert_rows_are_kept_when_there_are_experts() -> None:
    batch = MicroBatch(sequences=1, seq_len=128, arithmetic="fp32", attention="sdpa")
    dense = shape(hidden_size=64, intermediate_size=96)
    mixed = shape(hidden_size=64, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96)
    apart = activation_bytes(mixed, batch).layers - activation_bytes(dense, batch).layers
    sorted_rows, hidden, weighing, router = 2 * 2 * 64 * 4, 2 * 4 * 96 * 4, 2 * 32, 2 * 8 * 4 + 17
    assert apart == 3 * 128 * (sorted_rows + hidden + weighing + router - 4 * 96 * 4)
