"""Checkpoints of before queries, keys and values became one parameter: what is read is what lay in the parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from older_checkpoints import separate, write

from cluster.checkpoint import CheckpointReader, find_checkpoint, reader
from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import MASTER, Fragment, FragmentState, MicroBatch
from cluster.engines.torch_engine import TorchEngine
from cluster.errors import CheckpointError
from llm.config import ModelConfig, OptimizerConfig
from llm.transformer import Transformer

MODEL = ModelConfig(
    vocab_size=31,
    hidden_size=12,
    head_dim=6,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    intermediate_size=17,
    attention_bias=True,
    mlp_bias=True,
)
ROWS = {"qkv_proj": (18, 6, 6), "gate_up_proj": (17, 17)}
QKV, BIAS = "model.layers.1.self_attn.qkv_proj.weight", "model.layers.0.mlp.gate_up_proj.bias"
RUN = {"config": {"model": json.loads(json.dumps(asdict(replace(MODEL, vocab_size=None))))}}
"""As a run has it that leaves the vocabulary to its tokenizer."""


def make_engine(optimizer: OptimizerConfig) -> TorchEngine:
    return TorchEngine(Transformer(MODEL, "sdpa"), optimizer=optimizer, precision="fp32")


@pytest.fixture(scope="module", params=["adamw", "muon"])
def trained(request: pytest.FixtureRequest) -> tuple[OptimizerConfig, list[FragmentState]]:
    """An engine's state after two steps."""
    optimizer = OptimizerConfig(name=request.param)
    engine = make_engine(optimizer)
    engine.load(InitialState(MODEL, 3))
    tokens = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        engine.accumulate(MicroBatch(tokens[:, :-1], tokens[:, 1:], torch.ones(2, 8), None), torch.tensor(1 / 16))
        engine.update(1e-2)
    return optimizer, engine.snapshot()


def open_older(
    directory: Path,
    states: list[FragmentState],
    *,
    ranks: int = 1,
    change: Callable[[FragmentState], FragmentState | None] = lambda held: held,
) -> CheckpointReader:
    """A reader of these states in a checkpoint of so many ranks, under the older names."""
    changed = [change(held) for held in separate(states, ROWS)]
    write(directory, 2, [held for held in changed if held is not None], RUN, ranks=ranks)
    info = find_checkpoint(directory)
    assert info.manifest is not None
    assert QKV not in info.manifest.pieces
    return CheckpointReader(info.directory, info.manifest)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("readers", [1, 2, 5])
def test_any_fragment_is_read_from_the_parts(
    ranks: int, readers: int, trained: tuple[OptimizerConfig, list[FragmentState]], tmp_path: Path
) -> None:
    older = open_older(tmp_path, trained[1], ranks=ranks)
    for held in trained[1]:
        whole = held.fragment
        assert older.scalars(whole.name) == held.scalars
        assert {MASTER, *older.tensor_names(whole.name)} == held.tensors.keys()
        for rank in range(readers):
            begin, end = (whole.length * place // readers for place in (rank, rank + 1))
            fragment = Fragment(whole.name, whole.group, whole.shape, begin, end - begin)
            for state, tensor in held.tensors.items():
                assert torch.equal(older.read(fragment, state), tensor[begin:end]), (whole.name, state, rank)


def test_parameter_has_its_shape_when_read_whole_from_the_parts(
    trained: tuple[OptimizerConfig, list[FragmentState]], tmp_path: Path
) -> None:
    older = open_older(tmp_path, trained[1])
    (held,) = (held for held in trained[1] if held.fragment.name == QKV)
    assert torch.equal(older.whole(QKV), held.tensors[MASTER].view(30, 12))
    assert older.whole(BIAS).shape == (34,)


def test_engine_holds_bit_equal_state_when_it_loads_the_parts(
    trained: tuple[OptimizerConfig, list[FragmentState]], tmp_path: Path
) -> None:
    optimizer, states = trained
    engine = make_engine(optimizer)
    engine.load(open_older(tmp_path, states, ranks=2))
    for loaded, saved in zip(engine.snapshot(), states, strict=True):
        assert (loaded.fragment, loaded.scalars, loaded.tensors.keys()) == (
            saved.fragment,
            saved.scalars,
            saved.tensors.keys(),
        )
        assert all(torch.equal(tensor, saved.tensors[state]) for state, tensor in loaded.tensors.items())


def test_parameter_is_refused_when_a_part_is_missing(
    trained: tuple[OptimizerConfig, list[FragmentState]], tmp_path: Path
) -> None:
    older = open_older(
        tmp_path, trained[1], change=lambda held: None if "layers.1.self_attn.k_proj" in held.fragment.name else held
    )
    with pytest.raises(CheckpointError, match=rf"has no parameter '{QKV}': it was written by another model"):
        older.whole(QKV)
    assert older.whole(QKV.replace("layers.1", "layers.0")).shape == (30, 12)


def test_parameter_is_refused_when_a_part_has_another_shape(
    trained: tuple[OptimizerConfig, list[FragmentState]], tmp_path: Path
) -> None:
    def turn(held: FragmentState) -> FragmentState:
        if "layers.1.self_attn.k_proj.weight" in held.fragment.name:
            return replace(held, fragment=replace(held.fragment, shape=(12, 6)))
        return held

    older = open_older(tmp_path, trained[1], change=turn)
    with pytest.raises(CheckpointError, match=rf"has no parameter '{QKV}': it was written by another model"):
        older.whole(QKV)


def test_parts_are_not_looked_for_when_the_checkpoint_has_the_parameters(
    trained: tuple[OptimizerConfig, list[FragmentState]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "pieces_from_parts", lambda manifest: pytest.fail("looked for parts"))
    write(tmp_path, 2, trained[1], RUN)
    info = find_checkpoint(tmp_path)
    assert info.manifest is not None
    make_engine(trained[0]).load(CheckpointReader(info.directory, info.manifest))
