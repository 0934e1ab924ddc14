"""The whole model against Hugging Face's, and its promises: documents, dtypes, loss weights, construction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.accounting import parameter_parts
from llm.config import ModelConfig
from llm.errors import AttentionBackendError, ModelConfigError, ModelInputError
from llm.initialization import initialize
from llm.kv_cache import KeyValueCache
from llm.loss import LossSums
from llm.transformer import Transformer

REFERENCE_TOLERANCE = 2e-5
"""fp32 through three layers, with sums of at most 128 terms in another order."""
BF16_LOSS_TOLERANCE = 2e-2
"""bf16 has 8 bits; the mean over 66 targets averages the rounding down from about 4e-2 a logit."""

GROUPED: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"num_attention_heads": 4},
    "untied": {"num_attention_heads": 4, "tie_word_embeddings": False},
    "tied, grouped": GROUPED,
    "untied, grouped, wide heads": GROUPED | {"head_dim": 24, "tie_word_embeddings": False},
}


def make_config(**changes: Any) -> ModelConfig:
    small = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 128}
    return ModelConfig(**{**small, "initializer_range": 0.1, **changes})


def make_model(attention: str = "sdpa", **changes: Any) -> Transformer:
    config = make_config(**changes)
    model = Transformer(config, attention)
    initialize(model, config, seed=3)
    return model


def make_batch(T: int = 33) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, 101, (2, T + 1), generator=generator)
    weights_BT = torch.ones(2, T)
    weights_BT[1, -5:] = 0
    return tokens_BT[:, :-1], tokens_BT[:, 1:], weights_BT


def separated(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors by the names that Hugging Face's Llama has, which keeps each matrix apart."""
    apart = {}
    for name, tensor in tensors.items():
        parts = parameter_parts(name, tensor.shape, config)
        apart.update(zip(parts, tensor.split(list(parts.values())), strict=True))
    return apart


def hugging_face_twin(model: Transformer) -> Any:
    transformers = pytest.importorskip("transformers")
    config = model.config
    arguments = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attn_implementation": "eager",
    }
    if config.qk_norm:
        twin = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**arguments))
    else:
        twin = transformers.LlamaForCausalLM(transformers.LlamaConfig(**arguments))
    result = twin.load_state_dict(separated(model.state_dict(), config), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
    return twin


def assert_equal_to_twin(model: Transformer, twin: Any) -> None:
    tokens, targets, weights = make_batch()
    twin_logits = twin(input_ids=tokens, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(twin_logits.flatten(0, 1), targets.flatten(), reduction="none")
    twin_loss = (losses * weights.flatten()).sum() / weights.sum()
    sums = model(tokens, targets, weights)
    loss = sums.objective_sum / sums.weight_sum
    tolerance = {"atol": REFERENCE_TOLERANCE, "rtol": REFERENCE_TOLERANCE}
    torch.testing.assert_close(model.logits(tokens), twin_logits, **tolerance)
    torch.testing.assert_close(loss, twin_loss, **tolerance)
    loss.backward()
    twin_loss.backward()
    gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
    ours = separated({name: parameter.grad for name, parameter in model.named_parameters()}, model.config)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients.pop(name), **tolerance)
    assert not gradients


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_hugging_face_llama_when_weights_are_shared(changes: dict[str, Any], attention: str) -> None:
    model = make_model(attention, **changes)
    assert_equal_to_twin(model, hugging_face_twin(model))


def test_model_equals_hugging_face_qwen3_when_queries_and_keys_are_normalised() -> None:
    model = make_model(**GROUPED, qk_norm=True, rope_theta=5e5)
    with torch.no_grad():  # at their initial value of one, swapped scales would go unnoticed
        for index, block in enumerate(model.model.layers):
            block.self_attn.q_norm.weight.uniform_(0.5, 1.5 + index)
            block.self_attn.k_norm.weight.uniform_(0.5, 1.5 + index)
    assert_equal_to_twin(model, hugging_face_twin(model))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_documents_give_what_separate_passes_give_when_masked(attention: str) -> None:
    model = make_model(attention, **GROUPED)
    tokens, _, _ = make_batch()
    ids = torch.tensor([0] * 10 + [1] * 1 + [2] * 22).expand(2, -1)
    together = model.logits(tokens, document_ids_BT=ids)
    apart = [model.logits(part) for part in tokens.split([10, 1, 22], dim=1)]
    expected = torch.cat(apart, dim=1)
    torch.testing.assert_close(together, expected, atol=REFERENCE_TOLERANCE, rtol=REFERENCE_TOLERANCE)
    assert not torch.allclose(model.logits(tokens), expected, atol=1e-2)


def test_logits_do_not_see_the_future_when_a_later_token_changes() -> None:
    model = make_model()
    tokens, _, _ = make_batch()
    altered = tokens.clone()
    altered[:, 20] = (altered[:, 20] + 1) % 101
    before, after = model.logits(tokens), model.logits(altered)
    torch.testing.assert_close(before[:, :20], after[:, :20], atol=REFERENCE_TOLERANCE, rtol=0.0)
    assert not torch.allclose(before[:, 20], after[:, 20], atol=1e-2)


def test_target_changes_neither_loss_nor_gradient_when_its_weight_is_zero() -> None:
    tokens, targets, weights = make_batch()
    altered = targets.masked_fill(weights == 0, 0)
    results = []
    for some_targets in (targets, altered):
        model = make_model()
        sums = model(tokens, some_targets, weights)
        sums.objective_sum.backward()
        results.append((sums.objective_sum, [parameter.grad for parameter in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_every_target_counts_once_when_no_weights_are_given() -> None:
    model = make_model()
    tokens, targets, _ = make_batch()
    assert torch.equal(model(tokens, targets).loss_sum, model(tokens, targets, torch.ones(2, 33)).loss_sum)


def test_output_weight_is_the_embedding_when_tied() -> None:
    model = make_model()
    assert [name for name in model.state_dict() if "embed" in name or "lm_head" in name] == [
        "model.embed_tokens.weight"
    ]
    before = model.logits(make_batch()[0])
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = 0
    assert float(before[0, 0, 7].detach()) != 0
    assert torch.equal(model.logits(make_batch()[0])[:, :, 7], torch.zeros(2, 33))


def test_loss_is_fp32_and_near_when_model_is_bf16() -> None:
    tokens, targets, weights = make_batch()
    ids = torch.tensor([0] * 16 + [1] * 17).expand(2, -1)
    exact = make_model(**GROUPED)(tokens, targets, weights, ids)
    narrow_model = make_model(**GROUPED).to(torch.bfloat16)
    narrow = narrow_model(tokens, targets, weights, ids)
    assert isinstance(narrow, LossSums)
    assert narrow.loss_sum.dtype == narrow.weight_sum.dtype == torch.float32
    torch.testing.assert_close(narrow.loss_sum, exact.loss_sum, rtol=BF16_LOSS_TOLERANCE, atol=0.0)
    narrow.objective_sum.backward()
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in narrow_model.parameters())


def test_loss_is_fp32_and_near_when_autocast_to_bf16() -> None:
    tokens, targets, weights = make_batch()
    ids = torch.tensor([0] * 16 + [1] * 17).expand(2, -1)
    exact = make_model(**GROUPED)(tokens, targets, weights, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = make_model(**GROUPED)(tokens, targets, weights, ids)
    assert narrow.loss_sum.dtype == torch.float32
    torch.testing.assert_close(narrow.loss_sum, exact.loss_sum, rtol=BF16_LOSS_TOLERANCE, atol=0.0)


def test_model_takes_no_memory_and_no_random_numbers_when_built_on_meta() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = Transformer(make_config(hidden_size=8192, vocab_size=128_000), "sdpa")
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert torch.equal(torch.get_rng_state(), before)


def test_model_works_when_materialised_from_meta() -> None:
    config = make_config()
    with torch.device("meta"):
        model = Transformer(config, "sdpa")
    model.to_empty(device="cpu")
    initialize(model, config, seed=3)
    tokens, _, _ = make_batch()
    assert torch.equal(model.logits(tokens), make_model().logits(tokens))


def test_model_is_refused_when_vocabulary_is_unknown() -> None:
    with pytest.raises(ModelConfigError, match=r"^model\.vocab_size is null"):
        Transformer(ModelConfig(), "sdpa")


def test_model_is_refused_when_attention_is_not_resolved() -> None:
    with pytest.raises(AttentionBackendError, match="must be resolved once"):
        Transformer(make_config(), "auto")


def test_weights_are_refused_when_there_are_no_targets() -> None:
    tokens, _, weights = make_batch()
    with pytest.raises(ModelInputError) as error:
        make_model()(tokens, loss_weights_BT=weights)
    assert str(error.value) == ("the model got loss_weights without targets: there is no loss to weigh. Pass both.")


def test_documents_are_refused_when_the_cache_holds_tokens_without() -> None:
    tokens, _, _ = make_batch()
    model, cache = make_model(), KeyValueCache(3)
    model.logits(tokens, cache=cache)
    with pytest.raises(ModelInputError) as error:
        model.logits(tokens, torch.zeros_like(tokens), cache)
    assert str(error.value) == (
        "the cache holds 33 tokens without document_ids and 33 more came with: which tokens see each other is then "
        "unknown. Pass document_ids for all tokens or for none."
    )


@pytest.mark.parametrize("changes", [VARIANTS["tied"], VARIANTS["untied"]], ids=["tied", "untied"])
def test_scores_are_those_of_the_last_position_when_asked_for_it_alone(changes: dict[str, Any]) -> None:
    model, (tokens, _, _) = make_model(**changes), make_batch()
    last = model.logits(tokens, last_only=True)
    assert last.shape == (2, 1, 101)
    tolerance = {"atol": REFERENCE_TOLERANCE, "rtol": REFERENCE_TOLERANCE}
    torch.testing.assert_close(last, model.logits(tokens)[:, -1:], **tolerance)


def test_last_position_alone_is_refused_when_there_are_targets() -> None:
    tokens, targets, _ = make_batch()
    with pytest.raises(ModelInputError) as error:
        make_model()(tokens, targets, last_only=True)
    assert str(error.value) == (
        "the model got targets and last_only: the loss is over all positions, and logits alone can be of the last. "
        "Leave one of them out."
    )
