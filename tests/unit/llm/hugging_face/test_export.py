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
from llm.errors import ExportError, ModelConfigError, ProofError
from llm.hugging_face.export import export_model
from llm.hugging_face.proof import prove_export
from llm.hugging_face.sentencepiece_model import SpecialTokens, read_sentencepiece
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
    defaults: dict[str, Any] = {"tokenizer": TOKENS, "sequence_length": 64}
    return export_model(target, config, initial(config), **(defaults | options)).directory


def tensors_of(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_tensors_are_the_same_when_exported_again(case: str, make_twin: MakeTwin, tmp_path: Path) -> None:
    weights = HuggingFaceWeights(make_twin(case)[1])
    export_model(tmp_path / "out", weights.config, weights.read, tokenizer=TOKENS, sequence_length=64)
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
    out = export_model(tmp_path / "out", weights.config, weights.read, tokenizer=TOKENS, sequence_length=64).directory
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


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": False}, {"num_experts": 4}])
def test_weights_are_divided_over_files_when_they_exceed_the_limit(changes: dict[str, Any], tmp_path: Path) -> None:
    config = small(**changes)
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
    weights = HuggingFaceWeights(out)
    assert all(torch.equal(weights.read(name), initial(config)(name)) for name in weights.names)


def test_a_tensor_has_a_file_of_its_own_when_it_exceeds_the_limit(tmp_path: Path) -> None:
    config = small(num_hidden_layers=1)
    files = export_model(
        tmp_path / "out", config, initial(config), tokenizer=TOKENS, sequence_length=64, max_shard_bytes=1
    ).weight_files
    assert len(files) == 11
    weights = HuggingFaceWeights(tmp_path / "out")
    assert all(torch.equal(weights.read(name), initial(config)(name)) for name in weights.names)


@pytest.mark.parametrize("experts", [None, 4])
def test_each_parameter_is_asked_for_once(experts: int | None, tmp_path: Path) -> None:
    config = small(num_experts=experts)
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return initial(config)(name)

    export_model(tmp_path / "out", config, read, tokenizer=TOKENS, sequence_length=64)
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


def test_an_export_computes_the_same_when_the_family_has_no_word_for_the_dropout_of_the_training(
    tmp_path: Path,
) -> None:
    pytest.importorskip("transformers")
    config = small(embedding_dropout=0.1, attention_dropout=0.2, residual_dropout=0.3)

    def prove(directory: Path) -> None:
        prove_export(directory, config, initial(config), rows())

    exported = export_model(
        tmp_path / "out", config, initial(config), tokenizer=TOKENS, sequence_length=64, prove=prove
    )
    assert exported.model_type == "llama"
    assert exported.left_out == {"embedding_dropout": 0.1, "residual_dropout": 0.3}
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["attention_dropout"] == 0.2


def test_nothing_is_left_out_when_the_family_has_a_word_for_every_dropout(tmp_path: Path) -> None:
    config = small(attention_dropout=0.2)
    assert export_model(tmp_path / "a", config, initial(config), tokenizer=TOKENS, sequence_length=64).left_out == {}


def test_an_export_is_refused_when_the_target_exists(tmp_path: Path) -> None:
    export(tmp_path / "out", small())
    with pytest.raises(ExportError, match=r"out exists already, and an export never changes .* Give another directory"):
        export(tmp_path / "out", small())


def test_an_export_is_refused_when_a_special_token_is_outside_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the eos token is 97, and the model has the tokens 0 to 96\. Give"):
        export(tmp_path / "out", small(), tokenizer=SpecialTokens(bos=1, eos=97, pad=None))


def test_an_export_is_refused_when_the_vocabulary_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match="vocab_size is null"):
        export_model(tmp_path, small(vocab_size=None), torch.ones, tokenizer=TOKENS, sequence_length=64)


def test_an_export_is_refused_when_a_parameter_has_another_shape(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"model\.embed_tokens\.weight came as .* \(3,\), and the model's is .* \(97,"
    ):
        export_model(tmp_path / "out", small(), lambda name: torch.ones(3), tokenizer=TOKENS, sequence_length=64)


def test_nothing_is_left_when_an_export_fails(tmp_path: Path) -> None:
    config = small()

    def read(name: str) -> Tensor:
        if name == "model.layers.2.mlp.down_proj.weight":
            raise OSError("the checkpoint is gone")
        return initial(config)(name)

    with pytest.raises(OSError, match="the checkpoint is gone"):
        export_model(tmp_path / "out", config, read, tokenizer=TOKENS, sequence_length=64)
    assert list(tmp_path.iterdir()) == []


def test_transformers_generates_text_when_model_and_tokenizer_were_exported(runs_model: bytes, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = read_sentencepiece(runs_model, "t.model")
    out = export(tmp_path / "out", small(vocab_size=len(tokenizer.pieces)), tokenizer=tokenizer)
    assert (out / "tokenizer.model").read_bytes() == runs_model
    assert json.loads((out / "config.json").read_bytes())["eos_token_id"] == 2
    text = transformers.pipeline("text-generation", str(out))("ab ab", max_new_tokens=5, do_sample=False)
    assert text[0]["generated_text"].startswith("ab ab")


def test_an_export_is_refused_when_the_tokenizer_has_more_pieces_than_the_model(
    runs_model: bytes, tmp_path: Path
) -> None:
    with pytest.raises(
        ExportError, match=r"the tokenizer has \d+ pieces and the model 97 tokens: some would be outside"
    ):
        export(tmp_path / "out", small(), tokenizer=read_sentencepiece(runs_model, "t.model"))


def test_nothing_is_left_when_a_proof_of_the_whole_directory_fails(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def refuse(directory: Path) -> None:
        seen.append({path.name for path in directory.iterdir()})
        assert not (tmp_path / "out").exists()
        raise ProofError("other logits")

    with pytest.raises(ProofError, match="other logits"):
        export(tmp_path / "out", small(), prove=refuse)
    assert seen == [{"config.json", "generation_config.json", "model.safetensors"}]
    assert list(tmp_path.iterdir()) == []


MEASURED = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch
from llm.accounting import parameter_shapes
from llm.config import ModelConfig
from llm.hugging_face.export import export_model
from llm.hugging_face.proof import prove_export
from llm.hugging_face.sentencepiece_model import SpecialTokens
from llm.hugging_face.weights import HuggingFaceWeights

def held():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def export(layers, out):
    config = ModelConfig(
        vocab_size=64, hidden_size=512, num_hidden_layers=layers, num_attention_heads=8, intermediate_size=512
    )
    shapes = parameter_shapes(config)
    peaks = []
    def read(name):
        peaks.append(held())
        return torch.ones(shapes[name])
    tokens = SpecialTokens(bos=1, eos=2, pad=None)
    export_model(Path(sys.argv[1]) / out, config, read, tokenizer=tokens, sequence_length=64)
    weights = HuggingFaceWeights(Path(sys.argv[1]) / out)
    for name in weights.names:
        weights.read(name)
        peaks.append(held())
    return max(peaks)

print(export(1, "small"), export(12, "large"))
"""


def test_memory_is_bounded_by_a_parameter_when_a_model_is_written_and_read(tmp_path: Path) -> None:
    """Over 80 MB in parameters of 3 MB, in a process of its own; mapped pages of files, which can go, do not count."""
    if not Path("/proc/self/status").exists():
        pytest.skip("anonymous memory is read from /proc")
    command = [sys.executable, "-c", MEASURED.format(path=sys.path), str(tmp_path)]
    small_bytes, large_bytes = map(
        int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    )
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 80e6
    assert large_bytes - small_bytes < 15e6
