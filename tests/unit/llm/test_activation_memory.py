"""Bytes of activations, against what torch's profiler sees allocated: after the forward pass, and at the most."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from llm.activation_checkpointing import ActivationCheckpointing
from llm.activation_memory import activation_bytes, peak_bytes
from llm.config import ModelConfig
from llm.dropout import row_keys
from llm.initialization import initialize
from llm.loss import LossSums
from llm.memory import SHORT_ROW_TOKENS, Arithmetic, MicroBatch, loss_bytes
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
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LAYERS, SEQUENCES, SEQ_LEN = 3, 2, 48
ARITHMETICS: tuple[Arithmetic, ...] = ("fp32", "bf16", "autocast")
MODES: tuple[ActivationCheckpointing, ...] = ("off", "selective", "full")
FEW_BYTES = 64 * LAYERS
"""Python's numbers, as tensors that autograd keeps, and the rows' keys for dropout: some 50 bytes of a layer."""
COPIES_TOLERANCE = 0.02
"""Of documents that are copied, the padding's share of some tensors is counted, and of others not."""
PEAK_TOLERANCE = 0.07
"""The order in which autograd frees what it has used is simplified: within 5 % where this was written."""


def shape(**fields: object) -> ModelConfig:
    plain = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
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
    "dropout": shape(embedding_dropout=0.1, residual_dropout=0.1),
    "experts": shape(**EXPERTS),
    "experts, not normalized": shape(norm_topk_prob=False, **EXPERTS),
}
VARIANTS = [
    *[(name, config, attention) for name, config in SHAPES.items() for attention in ("eager", "sdpa")],
    ("capped", shape(attn_logit_softcapping=9.0), "eager"),  # which no fused kernel does, as little as the next
    ("dropped weights", shape(attention_dropout=0.1, residual_dropout=0.1), "eager"),
]
DOCUMENTED = (SHAPES["grouped"], SHAPES["windows"])


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    """What an earlier test has left is not freed while a profiler looks on; collecting before each costs far more."""
    gc.disable()
    yield
    gc.enable()


class Pass:
    """A model and a micro-batch, to be computed while a profiler looks on."""

    def __init__(
        self, config: ModelConfig, batch: MicroBatch, mode: ActivationCheckpointing, document_tokens: int = 20
    ) -> None:
        self.batch, size = batch, (batch.sequences, batch.seq_len)
        self.model = Transformer(config, batch.attention, mode)
        initialize(self.model, config, seed=1)
        self.model.to(torch.bfloat16 if batch.arithmetic == "bf16" else torch.float32)
        self.targets, self.weights = torch.zeros(size, dtype=torch.long), torch.ones(size)
        self.keys = row_keys(1, 0, torch.arange(batch.sequences)) if config.has_dropout else None
        self.documents: Tensor | None = None
        if batch.documents:
            self.documents = (torch.arange(batch.seq_len) // document_tokens).repeat(batch.sequences, 1)
        self.forward().objective_sum.backward()  # gradients of the parameters are there from now on

    def forward(self) -> LossSums:
        tokens = torch.zeros_like(self.targets)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.batch.arithmetic == "autocast"):
            sums = self.model(
                tokens, self.targets, self.weights, document_ids_BT=self.documents, dropout_keys_B=self.keys
            )
        assert isinstance(sums, LossSums)
        return sums

    def kept_bytes(self) -> int:
        """What the forward pass has allocated and not given back, its results left out."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            sums = self.forward()
        results = (sums.objective_sum, sums.loss_sum, sums.weight_sum, *sums.terms.values())
        return sum(changes(profiler)) - sum(result.nbytes for result in results)

    def peak(self) -> int:
        """The most that forward and backward pass hold at a time."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.forward().objective_sum.backward()
        return max(accumulate(changes(profiler)))


def changes(profiler: profile) -> list[int]:
    """Bytes allocated, and below 0 freed, in their order."""
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    return [change for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")]


def predicted(config: ModelConfig, batch: MicroBatch, mode: ActivationCheckpointing) -> int:
    return activation_bytes(config, batch, mode).total + loss_bytes(config, batch).kept


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("config", "attention"), [each[1:] for each in VARIANTS], ids=[f"{each[0]}-{each[2]}" for each in VARIANTS]
)
def test_kept_bytes_equal_what_stays_allocated_when_a_micro_batch_was_computed(
    config: ModelConfig, attention: str, mode: ActivationCheckpointing
) -> None:
    for arithmetic in ARITHMETICS:
        batch = MicroBatch(sequences=SEQUENCES, seq_len=SEQ_LEN, arithmetic=arithmetic, attention=attention)
        kept = Pass(config, batch, mode).kept_bytes()
        assert predicted(config, batch, mode) == pytest.approx(kept, rel=0, abs=FEW_BYTES), arithmetic


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
def test_kept_bytes_equal_what_stays_allocated_when_documents_are_masked(
    attention: str, mode: ActivationCheckpointing
) -> None:
    for config, arithmetic in ((config, arithmetic) for config in DOCUMENTED for arithmetic in ARITHMETICS):
        batch = MicroBatch(
            sequences=SEQUENCES, seq_len=SEQ_LEN, arithmetic=arithmetic, attention=attention, documents=True
        )
        kept = Pass(config, batch, mode).kept_bytes()
        assert predicted(config, batch, mode) == pytest.approx(kept, rel=0, abs=FEW_BYTES), arithmetic


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Llama", "grouped", "one key, untied"])
def test_kept_bytes_equal_what_stays_allocated_when_there_is_one_sequence(name: str, attention: str) -> None:
    batch = MicroBatch(sequences=1, seq_len=SEQ_LEN, arithmetic="fp32", attention=attention)
    kept = Pass(SHAPES[name], batch, "off").kept_bytes()
    assert predicted(SHAPES[name], batch, "off") == pytest.approx(kept, rel=0, abs=FEW_BYTES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("length", "copied_length"), [(100, 0), (20, 24)], ids=["long", "short"])
def test_kept_bytes_are_close_to_what_stays_allocated_when_attention_is_cut_into_tiles(
    length: int, copied_length: int, mode: ActivationCheckpointing
) -> None:
    for config, arithmetic in ((config, arithmetic) for config in DOCUMENTED for arithmetic in ARITHMETICS):
        documents = SEQUENCES * 300 // length
        batch = MicroBatch(
            sequences=SEQUENCES,
            seq_len=300,
            arithmetic=arithmetic,
            attention="varlen",
            documents=True,
            copied_tokens=documents * copied_length,
        )
        assert batch.seq_len > SHORT_ROW_TOKENS
        kept = Pass(config, batch, mode, length).kept_bytes()
        assert predicted(config, batch, mode) == pytest.approx(kept, rel=COPIES_TOLERANCE), arithmetic


def test_a_layer_is_whole_again_when_it_is_recomputed() -> None:
    batch = MicroBatch(sequences=SEQUENCES, seq_len=SEQ_LEN, arithmetic="bf16", attention="sdpa")
    of_off, *of_others = (activation_bytes(SHAPES["Llama"], batch, mode) for mode in MODES)
    assert of_off.recomputed == 0
    for bytes_ in of_others:
        assert bytes_.layers // LAYERS + bytes_.recomputed == of_off.layers // LAYERS


PEAKS = {
    "loss": shape(vocab_size=1000, hidden_size=64, num_hidden_layers=2),
    "feed-forward": shape(hidden_size=64, intermediate_size=800, num_hidden_layers=2),
    "plain feed-forward": shape(hidden_size=64, intermediate_size=800, num_hidden_layers=2, **GPT2),
    "wide": shape(hidden_size=512, intermediate_size=1000, num_hidden_layers=1),  # whose matrices outweigh its tokens
    "experts": shape(hidden_size=64, **EXPERTS),
    "wide experts": shape(hidden_size=64, **{**EXPERTS, "moe_intermediate_size": 400}),
    "attention": shape(hidden_size=64, intermediate_size=32, num_hidden_layers=2),
}
ALL = [(name, attention, "fp32") for name in PEAKS for attention in ("eager", "sdpa")]
NARROW = [("loss", "sdpa"), ("feed-forward", "sdpa"), ("plain feed-forward", "varlen"), ("attention", "eager")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "attention", "arithmetic"),
    [*ALL, *((*each, arithmetic) for each in NARROW for arithmetic in ("bf16", "autocast"))],
)
def test_peak_is_close_to_what_is_allocated_when_a_micro_batch_is_computed(
    name: str, attention: str, arithmetic: Arithmetic, mode: ActivationCheckpointing
) -> None:
    batch = MicroBatch(sequences=2, seq_len=256, arithmetic=arithmetic, attention=attention)
    peak = Pass(PEAKS[name], batch, mode).peak()
    assert peak_bytes(PEAKS[name], batch, mode) == pytest.approx(peak, rel=PEAK_TOLERANCE)
