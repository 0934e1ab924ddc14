"""The proof: it holds for exports of every family, and fails where one weight differs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llm.accounting import parameter_shapes
from llm.config import ModelConfig
from llm.errors import ProofError
from llm.hugging_face.export import ExportDtype, export_model
from llm.hugging_face.proof import LARGEST_DIFFERENCE, prove_export
from llm.hugging_face.sentencepiece_model import SpecialTokens
from llm.hugging_face.weights import HuggingFaceWeights
from llm.initialization import initial_value

MakeTwin = Callable[..., tuple[Any, Path]]
TOKENS = SpecialTokens(bos=1, eos=2, pad=None)


def small(**changes: Any) -> ModelConfig:
    shape = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    return ModelConfig(**{**shape, "intermediate_size": 56, **changes})


def initial(config: ModelConfig) -> Callable[[str], Tensor]:
    shapes = parameter_shapes(config)
    return lambda name: initial_value(name, shapes[name], config, seed=3)


def export(target: Path, config: ModelConfig) -> Path:
    return export_model(target, config, initial(config), tokenizer=TOKENS, sequence_length=64).directory


def rows() -> Tensor:
    return torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))


def test_an_export_is_proven_when_it_is_whole(case: str, make_twin: MakeTwin, tmp_path: Path) -> None:
    weights = HuggingFaceWeights(make_twin(case)[1])
    out = export_model(tmp_path / "out", weights.config, weights.read, tokenizer=TOKENS, sequence_length=64).directory
    proof = prove_export(out, weights.config, weights.read, rows())
    assert proof.positions == 80
    assert proof.relative_difference < LARGEST_DIFFERENCE / 5
    assert proof.logit_scale > 0.01


@pytest.mark.parametrize("case", ["llama", "qwen3_moe", "mixtral", "gemma3", "gpt2"])
def test_an_export_in_bf16_is_proven(case: str, make_twin: MakeTwin, tmp_path: Path) -> None:
    weights = HuggingFaceWeights(make_twin(case)[1])
    bf16: ExportDtype = "bfloat16"
    options: dict[str, Any] = {"tokenizer": TOKENS, "sequence_length": 64, "dtype": bf16}
    out = export_model(tmp_path / "out", weights.config, weights.read, **options).directory
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert prove_export(out, weights.config, weights.read, rows()).relative_difference < LARGEST_DIFFERENCE


def test_a_model_of_this_program_is_proven_when_it_sets_no_limit_and_came_from_nowhere(tmp_path: Path) -> None:
    config = small(num_key_value_heads=2, initializer_range=0.2)
    out = export(tmp_path / "out", config)
    assert json.loads((out / "config.json").read_bytes())["max_position_embeddings"] == 64
    assert prove_export(out, config, initial(config), rows()).relative_difference < LARGEST_DIFFERENCE


def test_an_export_is_refused_by_the_proof_when_a_weight_differs(tmp_path: Path) -> None:
    config = small(initializer_range=0.2)
    out = export(tmp_path / "out", config)

    def altered(name: str) -> Tensor:
        value = initial(config)(name)
        return value * 1.01 if name == "model.layers.1.self_attn.qkv_proj.weight" else value

    with pytest.raises(ProofError, match=r"computes other logits from .*out than the model .* at most 0\.0001 of it"):
        prove_export(out, config, altered, rows())


def level(config: ModelConfig) -> Callable[[str], Tensor]:
    """Numbers of a model whose first two experts every router finds equally good."""

    def read(name: str) -> Tensor:
        value = initial(config)(name)
        return torch.cat([value[:1], value[:1], value[2:]]) if name.endswith("mlp.gate.weight") else value

    return read


def export_level(target: Path, config: ModelConfig) -> Path:
    return export_model(target, config, level(config), tokenizer=TOKENS, sequence_length=64).directory


def test_positions_are_left_out_from_where_rounding_decides_between_experts(tmp_path: Path) -> None:
    config = small(num_experts=6, num_experts_per_tok=1, initializer_range=0.2)
    proof = prove_export(export_level(tmp_path / "out", config), config, level(config), rows())
    assert 0 < proof.positions < 80
    assert proof.relative_difference < LARGEST_DIFFERENCE


def test_a_proof_is_refused_when_rounding_decides_between_experts_everywhere(tmp_path: Path) -> None:
    config = small(num_experts=2, num_experts_per_tok=1)
    out = export_level(tmp_path / "out", config)
    with pytest.raises(ProofError, match=r"nothing of .*out could be compared: in every sequence experts of the first"):
        prove_export(out, config, level(config), rows())


def test_an_export_is_proven_when_every_token_uses_all_experts(tmp_path: Path) -> None:
    config = small(num_experts=2, num_experts_per_tok=2, initializer_range=0.2)
    assert prove_export(export_level(tmp_path / "out", config), config, level(config), rows()).positions == 80


def test_a_proof_is_refused_when_logits_are_not_finite(tmp_path: Path) -> None:
    config = small()

    def broken(name: str) -> Tensor:
        return initial(config)(name) * float("nan")

    out = export_model(tmp_path / "out", config, broken, tokenizer=TOKENS, sequence_length=64).directory
    with pytest.raises(ProofError, match="are not finite: nothing can be compared"):
        prove_export(out, config, broken, rows())


def test_a_proof_is_refused_when_transformers_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small()
    out = export(tmp_path / "out", config)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ProofError, match=r"transformers, which is not installed here\. Install it .*longhaul\[export\]"
    ):
        prove_export(out, config, initial(config), rows())
