"""Models of every family written again: transformers computes the same with them; nothing half-written is found."""

from __future__ import annotations

import json
import subprocess
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
from llm.errors import ExportError, ProofError
from llm.hugging_face.export import ExportDtype, SpecialTokens, export_model
from llm.hugging_face.proof import LARGEST_DIFFERENCE, prove_export
from llm.hugging_face.weights import HuggingFaceWeights
from llm.initialization import initial_value

MakeTwin = Callable[..., tuple[Any, Path]]
TOKENS = SpecialTokens(bos=1, eos=2, pad=None)
ONE_PLUS_ROUNDING = 2e-7
"""Gemma stores w of 1 + w: the sum is rounded once in fp32, which has 24 bits."""


def small(**changes: Any) -> ModelConfig:
    shape = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    return ModelConfig(**{**shape, "intermediate_size": 56, **changes})


def initial(config: ModelConfig) -> Callable[[str], Tensor]:
    shapes = parameter_shapes(config)
    return lambda name: initial_value(name, shapes[name], config, seed=3)


def rows() -> Tensor:
    return torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))


def export(target: Path, config: ModelConfig, **options: Any) -> Path:
    defaults: dict[str, Any] = {"tokens": TOKENS, "sequence_length": 64}
    return export_model(target, config, initial(config), **(defaults | options)).directory


def tensors_of(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_tensors_are_the_same_when_exported_again(case: str, make_twin: MakeTwin, tmp_path: Path) -> None:
    weights = HuggingFaceWeights(make_twin(case)[1])
    export_model(tmp_path / "out", weights.config, weights.read, tokens=TOKENS, sequence_length=64)
    theirs, again = tensors_of(make_twin(case)[1]), tensors_of(tmp_path / "out")
    assert theirs.keys() == again.keys()
    for name, tensor in theirs.items():
        if case.startswith("gemma") and name.endswith("norm.weight"):
            torch.testing.assert_close(again[name], tensor, atol=ONE_PLUS_ROUNDING, rtol=0)
        else:
            assert torch.equal(again[name], tensor), name


def test_transformers_computes_the_same_when_exported_again(case: str, make_twin: MakeTwin, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    twin, directory = make_twin(case)
    weights = HuggingFaceWeights(directory)
    out = export_model(tmp_path / "out", weights.config, weights.read, tokens=TOKENS, sequence_length=64).directory
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert loaded.dtype == torch.float32
    with torch.no_grad():
        ours, theirs = (model.eval()(input_ids=rows(), use_cache=False).logits for model in (loaded, twin))
    exact = not case.startswith("gemma")
    torch.testing.assert_close(ours, theirs, atol=0 if exact else 1e-4, rtol=0)


def test_an_export_is_proven_when_it_is_whole(case: str, make_twin: MakeTwin, tmp_path: Path) -> None:
    weights = HuggingFaceWeights(make_twin(case)[1])
    out = export_model(tmp_path / "out", weights.config, weights.read, tokens=TOKENS, sequence_length=64).directory
    proof = prove_export(out, weights.config, weights.read, rows())
    assert proof.positions == 80
    assert proof.relative_difference < LARGEST_DIFFERENCE / 5
    assert proof.logit_scale > 0.01


@pytest.mark.parametrize("case", ["llama", "gemma3", "gpt2"])
def test_an_export_in_bf16_is_proven(case: str, make_twin: MakeTwin, tmp_path: Path) -> None:
    weights = HuggingFaceWeights(make_twin(case)[1])
    bf16: ExportDtype = "bfloat16"
    options: dict[str, Any] = {"tokens": TOKENS, "sequence_length": 64, "dtype": bf16}
    out = export_model(tmp_path / "out", weights.config, weights.read, **options).directory
    assert {tensor.dtype for tensor in tensors_of(out).values()} == {torch.bfloat16}
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


def test_a_proof_is_refused_when_logits_are_not_finite(tmp_path: Path) -> None:
    config = small()

    def broken(name: str) -> Tensor:
        return initial(config)(name) * float("nan")

    out = export_model(tmp_path / "out", config, broken, tokens=TOKENS, sequence_length=64).directory
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


def test_weights_are_divided_over_files_when_they_exceed_the_limit(tmp_path: Path) -> None:
    config = small(tie_word_embeddings=False)
    limit = 20_000
    out = export(tmp_path / "out", config, max_shard_bytes=limit)
    index = json.loads((out / "model.safetensors.index.json").read_bytes())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    for file in files:
        tensors = load_file(out / file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= limit
        assert {name for name, place in index["weight_map"].items() if place == file} == set(tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(out).values())
    assert prove_export(out, config, initial(config), rows()).relative_difference < LARGEST_DIFFERENCE


def test_a_tensor_has_a_file_of_its_own_when_it_exceeds_the_limit(tmp_path: Path) -> None:
    config = small(num_hidden_layers=1)
    files = export_model(
        tmp_path / "out", config, initial(config), tokens=TOKENS, sequence_length=64, max_shard_bytes=1
    ).weight_files
    assert len(files) == 11
    weights = HuggingFaceWeights(tmp_path / "out")
    assert all(torch.equal(weights.read(name), initial(config)(name)) for name in weights.names)


def test_each_parameter_is_asked_for_once(tmp_path: Path) -> None:
    config = small()
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return initial(config)(name)

    export_model(tmp_path / "out", config, read, tokens=TOKENS, sequence_length=64)
    assert asked == list(parameter_shapes(config))


def test_special_tokens_and_other_files_are_written(tmp_path: Path) -> None:
    out = export(tmp_path / "out", small(), other_files={"tokenizer.model": b"pieces"})
    config = json.loads((out / "config.json").read_bytes())
    generation = json.loads((out / "generation_config.json").read_bytes())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, None)
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (out / "tokenizer.model").read_bytes() == b"pieces"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "../x", "a/b", ""])
def test_other_files_are_refused_when_their_names_are_not_free(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"a file .* was to be written into the export, and that name is not free"):
        export(tmp_path / "out", small(), other_files={name: b""})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_an_export_is_refused_when_the_target_exists(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(ExportError, match=r"out exists already, and an export never changes .* Give another directory"):
        export(tmp_path / "out", small())


def test_an_export_is_refused_when_the_disk_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"cannot be written \((Not a directory|File exists).* Give a directory on"):
        export(tmp_path / "file" / "out", small())


def test_an_export_is_refused_when_a_special_token_is_outside_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the eos token is 97, and the model has the tokens 0 to 96\. Give"):
        export(tmp_path / "out", small(), tokens=SpecialTokens(bos=1, eos=97, pad=None))


def test_an_export_is_refused_when_a_parameter_has_another_shape(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"model\.embed_tokens\.weight came as .* \(3,\), and the model's is .* \(97,"
    ):
        export_model(tmp_path / "out", small(), lambda name: torch.ones(3), tokens=TOKENS, sequence_length=64)


def test_nothing_is_left_when_an_export_fails(tmp_path: Path) -> None:
    config = small()

    def read(name: str) -> Tensor:
        if name == "model.layers.2.mlp.down_proj.weight":
            raise OSError("the checkpoint is gone")
        return initial(config)(name)

    with pytest.raises(OSError, match="the checkpoint is gone"):
        export_model(tmp_path / "out", config, read, tokens=TOKENS, sequence_length=64)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from llm.config import ModelConfig
from llm.hugging_face.export import SpecialTokens, export_model
from llm.initialization import initial_value
from llm.accounting import parameter_shapes
config = ModelConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=56)
shapes = parameter_shapes(config)
def read(name):
    if name.startswith("model.layers.2"):
        os.kill(os.getpid(), 9)
    return initial_value(name, shapes[name], config, 3)
tokens = SpecialTokens(bos=1, eos=2, pad=None)
export_model(Path(sys.argv[1]), config, read, tokens=tokens, sequence_length=64, max_shard_bytes=20_000)
"""


def test_what_a_killed_export_left_is_hidden_and_removed_by_the_next(tmp_path: Path) -> None:
    code = KILLED.format(path=sys.path)
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert result.returncode == -9
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".out.exporting-")
    assert list(left.glob("*.safetensors"))
    export(tmp_path / "out", small())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_memory_is_bounded_by_a_parameter_when_a_model_is_large(tmp_path: Path) -> None:
    """Over 80 MB in parameters of 3 MB, written in a process of its own, whose peak counts."""
    code = """
import resource, sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch
from llm.config import ModelConfig
from llm.hugging_face.export import SpecialTokens, export_model
from llm.hugging_face.weights import HuggingFaceWeights
from llm.accounting import parameter_shapes
def export(layers, out):
    config = ModelConfig(vocab_size=64, hidden_size=512, num_hidden_layers=layers, num_attention_heads=8,
        intermediate_size=512)
    shapes = parameter_shapes(config)
    export_model(Path(sys.argv[1]) / out, config, lambda name: torch.ones(shapes[name]),
        tokens=SpecialTokens(bos=1, eos=2, pad=None), sequence_length=64)
export(1, "small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export(12, "large")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code.format(path=sys.path), str(tmp_path)]
    grown_bytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
    written = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert written > 80e6
    assert grown_bytes < 20e6
