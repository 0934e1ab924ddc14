"""Weights of every family, imported: the same logits, loss, gradients and greedy text as transformers'."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.accounting import parameter_shapes
from llm.errors import HuggingFaceConfigError, HuggingFaceWeightsError
from llm.generation import SamplingConfig, generate
from llm.hugging_face.tensors import pieces
from llm.hugging_face.weights import INDEX_FILE, WHOLE_FILE, HuggingFaceWeights
from llm.transformer import Transformer

TOLERANCE = 1e-4
"""Of the scale of what is compared: fp32 through four layers, sums in another order, give some 1e-6."""
NEW_TOKENS = 64
MakeTwin = Callable[..., tuple[Any, Path]]


def imported(directory: Path, attention: str = "eager") -> Transformer:
    weights = HuggingFaceWeights(directory)
    # Without the balance loss, which transformers adds only where output_router_logits asks for it.
    config = weights.config if weights.config.num_experts is None else replace(weights.config, router_aux_loss_coef=0.0)
    model = Transformer(config, attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.read(name))
    return model


def some_tokens(T: int = 41) -> Tensor:
    return torch.randint(3, 97, (2, T), generator=torch.Generator().manual_seed(5))


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    scale = theirs.square().mean().sqrt().item()
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE * scale, rtol=0)


def test_logits_equal_those_of_transformers_when_imported(case: str, make_twin: MakeTwin) -> None:
    twin, directory = make_twin(case)
    tokens = some_tokens()
    with torch.no_grad():
        assert_near(imported(directory).logits(tokens), twin(input_ids=tokens, use_cache=False).logits)


def test_loss_and_gradients_equal_those_of_transformers_when_imported(case: str, make_twin: MakeTwin) -> None:
    twin, directory = make_twin(case)
    model = imported(directory)
    tokens = some_tokens()
    sums = model(tokens[:, :-1], tokens[:, 1:])
    loss = sums.objective_sum / sums.weight_sum
    twin.zero_grad()
    twin_loss = twin(input_ids=tokens, labels=tokens, use_cache=False).loss
    torch.testing.assert_close(loss, twin_loss, atol=0, rtol=TOLERANCE)
    loss.backward()
    twin_loss.backward()
    theirs = dict(twin.named_parameters())
    ours = dict(model.named_parameters())
    family = HuggingFaceWeights(directory).description.family
    # In memory transformers stacks the experts that it saves apart.
    for piece in pieces((family.names, *family.also_read)[-1], model.config):
        gradient = ours[piece.parameter].grad[piece.region]
        assert_near(gradient.T if piece.transposed else gradient, theirs.pop(piece.theirs).grad)
    assert not theirs


def test_greedy_text_equals_that_of_transformers_when_imported(case: str, make_twin: MakeTwin) -> None:
    twin, directory = make_twin(case)
    prompt = some_tokens(7)[:1]
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=0)
    ours = list(generate(imported(directory), prompt[0].tolist(), sampling))
    stop = twin.generation_config.eos_token_id
    twin.generation_config.eos_token_id = None
    theirs = twin.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0, prompt.shape[1] :].tolist()
    twin.generation_config.eos_token_id = stop
    assert len(ours) == NEW_TOKENS
    assert ours == theirs


def test_logits_are_equal_when_the_fused_kernels_compute_them(make_twin: MakeTwin) -> None:
    twin, directory = make_twin("gemma3")
    tokens = some_tokens()
    with torch.no_grad():
        assert_near(imported(directory, "sdpa").logits(tokens), twin(input_ids=tokens, use_cache=False).logits)


def test_names_and_shapes_are_those_of_the_model(case: str, make_twin: MakeTwin) -> None:
    weights = HuggingFaceWeights(make_twin(case)[1])
    shapes = parameter_shapes(weights.config)
    assert weights.names == tuple(shapes)
    assert {name: tuple(weights.read(name).shape) for name in weights.names} == shapes


@pytest.mark.parametrize("case", ["llama", "qwen3_moe", "mixtral", "gpt2"])
def test_every_parameter_is_the_same_when_weights_lie_in_many_files(case: str, make_twin: MakeTwin) -> None:
    whole, sharded = (make_twin(case, **save)[1] for save in ({}, {"max_shard_size": "20KB"}))
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = HuggingFaceWeights(whole), HuggingFaceWeights(sharded)
    for name in one.names:
        assert torch.equal(one.read(name), many.read(name)), name


def test_every_parameter_is_the_same_when_experts_are_stacked(experts_case: str, make_twin: MakeTwin) -> None:
    apart, stacked = (make_twin(experts_case, save_original_format=original)[1] for original in (True, False))
    one, other = HuggingFaceWeights(apart), HuggingFaceWeights(stacked)
    for name in one.names:
        assert torch.equal(one.read(name), other.read(name)), name


@pytest.mark.parametrize("original", [True, False])
def test_weights_are_refused_in_the_nearest_layout_when_an_expert_is_missing(
    original: bool, make_twin: MakeTwin, tmp_path: Path
) -> None:
    expert = "block_sparse_moe.experts.3.w2.weight" if original else "mlp.experts.down_proj"
    source = make_twin("mixtral", save_original_format=original)[1]
    directory = changed(source, tmp_path, without(f"model.layers.1.{expert}"))
    with pytest.raises(HuggingFaceWeightsError, match=rf"lack model\.layers\.1\.{re.escape(expert)}, and config\.json"):
        HuggingFaceWeights(directory)


def test_weights_are_read_when_names_lack_the_prefix_and_masks_lie_beside(make_twin: MakeTwin, tmp_path: Path) -> None:
    original = HuggingFaceWeights(make_twin("gpt2")[1])
    directory = changed(make_twin("gpt2")[1], tmp_path, bare_names)
    weights = HuggingFaceWeights(directory)
    assert all(torch.equal(weights.read(name), original.read(name)) for name in weights.names)


def test_what_is_read_is_fp32_when_stored_in_bf16(make_twin: MakeTwin, tmp_path: Path) -> None:
    def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.bfloat16() for name, tensor in tensors.items()}

    original = HuggingFaceWeights(make_twin("qwen3")[1])
    weights = HuggingFaceWeights(changed(make_twin("qwen3")[1], tmp_path, halved))
    for name in weights.names:
        assert torch.equal(weights.read(name), original.read(name).bfloat16().float())


def test_what_is_read_is_no_view_of_the_file(make_twin: MakeTwin) -> None:
    weights = HuggingFaceWeights(make_twin("llama")[1])
    before = weights.read("model.norm.weight").clone()
    weights.read("model.norm.weight").zero_()
    assert torch.equal(weights.read("model.norm.weight"), before)


def bare_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2 as it was first published."""
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    return bare | {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}


def changed(source: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of a directory with other tensors."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    save_file(change(load_file(source / WHOLE_FILE)), target / WHOLE_FILE, metadata={"format": "pt"})
    return target


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def plus(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {name: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.norm.weight"), r"lack model\.norm\.weight, and config\.json describes a llama model"),
        (plus("extra.weight", torch.ones(1)), r"besides hold extra\.weight, and config\.json"),
        (plus("model.norm.weight", torch.ones(3)), r"model\.norm\.weight has the shape \(3,\), and .* \(32,\)"),
        (
            plus("model.norm.weight", torch.ones(32, dtype=torch.int8)),
            r"model\.norm\.weight is stored as I8, .* was quantised\. Take the version that was not",
        ),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_tensors_are_refused_when_they_are_not_the_models(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, make_twin: MakeTwin, tmp_path: Path
) -> None:
    with pytest.raises(HuggingFaceWeightsError, match=message):
        HuggingFaceWeights(changed(make_twin("llama")[1], tmp_path, change))


def test_an_output_projection_is_accepted_when_it_is_the_tied_embedding(make_twin: MakeTwin, tmp_path: Path) -> None:
    source = make_twin("qwen2")[1]
    spelled_out = changed(source, tmp_path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert "lm_head.weight" not in HuggingFaceWeights(spelled_out).names


def test_an_output_projection_is_refused_when_it_is_not_the_tied_embedding(make_twin: MakeTwin, tmp_path: Path) -> None:
    source = make_twin("qwen2")[1]
    other = changed(source, tmp_path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(
        HuggingFaceWeightsError, match=r"an lm_head\.weight of their own, and config\.json has tie_word"
    ):
        HuggingFaceWeights(other)


def test_a_torn_file_is_refused(make_twin: MakeTwin, tmp_path: Path) -> None:
    shutil.copytree(make_twin("llama")[1], tmp_path, dirs_exist_ok=True)
    data = (tmp_path / WHOLE_FILE).read_bytes()
    for kept in (0, 5, 100, len(data) - 1):
        (tmp_path / WHOLE_FILE).write_bytes(data[:kept])
        with pytest.raises(HuggingFaceWeightsError, match=r"is not a whole safetensors file .* Download it again"):
            HuggingFaceWeights(tmp_path)


def test_a_directory_without_safetensors_is_refused(make_twin: MakeTwin, tmp_path: Path) -> None:
    shutil.copy(make_twin("llama")[1] / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(HuggingFaceWeightsError, match=r"neither model\.safetensors nor .* Convert them"):
        HuggingFaceWeights(tmp_path)


def sharded_copy(make_twin: MakeTwin, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(make_twin("llama", max_shard_size="20KB")[1], target, dirs_exist_ok=True)
    index = json.loads((target / INDEX_FILE).read_bytes())
    change(index)
    (target / INDEX_FILE).write_text(json.dumps(index))
    return target


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "x.bin", 7])
def test_an_index_is_refused_when_it_leaves_the_directory(file: object, make_twin: MakeTwin, tmp_path: Path) -> None:
    directory = sharded_copy(make_twin, tmp_path, lambda index: index["weight_map"].update({"model.norm.weight": file}))
    with pytest.raises(HuggingFaceWeightsError, match=r"puts the tensor model\.norm\.weight into .* only names of"):
        HuggingFaceWeights(directory)


def test_an_index_is_refused_when_it_names_another_file(make_twin: MakeTwin, tmp_path: Path) -> None:
    def swap(index: dict[str, Any]) -> None:
        files = sorted(set(index["weight_map"].values()))
        wrong = next(file for file in files if file != index["weight_map"]["model.norm.weight"])
        index["weight_map"]["model.norm.weight"] = wrong

    with pytest.raises(HuggingFaceWeightsError, match=r"holds the tensor model\.norm\.weight, and it does not"):
        HuggingFaceWeights(sharded_copy(make_twin, tmp_path, swap))


def test_a_directory_is_refused_when_a_file_of_the_index_is_missing(make_twin: MakeTwin, tmp_path: Path) -> None:
    directory = sharded_copy(make_twin, tmp_path, lambda index: None)
    next(directory.glob("*.safetensors")).unlink()
    with pytest.raises(HuggingFaceWeightsError, match=r"is missing, and model\.safetensors\.index\.json names it"):
        HuggingFaceWeights(directory)


def test_an_index_is_refused_when_it_is_torn_or_empty(make_twin: MakeTwin, tmp_path: Path) -> None:
    directory = sharded_copy(make_twin, tmp_path, lambda index: index.update(weight_map={}))
    with pytest.raises(HuggingFaceWeightsError, match="has no weight_map"):
        HuggingFaceWeights(directory)
    (directory / INDEX_FILE).write_text("{")
    with pytest.raises(HuggingFaceConfigError, match="is not whole JSON"):
        HuggingFaceWeights(directory)
