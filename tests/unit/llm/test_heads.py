from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.accounting import count_parameters, parameter_shapes
from llm.config import ModelConfig
from llm.flops import forward_flops
from llm.head_config import HeadConfig, Predicts
from llm.heads import HEADS, TaskHead, task_head
from llm.initialization import initialize
from llm.loss import LossSums
from llm.transformer import Transformer

B, T, D = 3, 5, 8
TRUNK = ModelConfig(
    vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, attention="eager"
)
CONFIGS = {
    "class": HeadConfig(predicts="class", outputs=4),
    "labels": HeadConfig(predicts="labels", outputs=3, bias=True),
    "number": HeadConfig(predicts="number", outputs=1),
}
EXACT = 1e-6  # fp32 sums of a few numbers, taken in another order


def head(config: HeadConfig, label_smoothing: float = 0.0) -> TaskHead:
    torch.manual_seed(0)
    made = task_head(config, D, label_smoothing)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def targets_of(config: HeadConfig) -> Tensor:
    torch.manual_seed(1)
    if config.predicts == "class":
        return torch.randint(0, config.outputs, (B, T))
    return torch.randn(B, T) if config.predicts == "number" else torch.randint(0, 2, (B, T, config.outputs))


def plain_loss(config: HeadConfig, outputs: Tensor, target: Tensor) -> Tensor:
    """Of one position, as the textbook has it."""
    if config.predicts == "class":
        return -torch.log(outputs.exp() / outputs.exp().sum())[target]
    if config.predicts == "number":
        return (outputs[0] - target) ** 2
    p = 1 / (1 + torch.exp(-outputs))
    return -(target * torch.log(p) + (1 - target) * torch.log(1 - p)).sum()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_loss_and_gradients_equal_a_sum_over_positions(config: HeadConfig) -> None:
    made, targets = head(config), targets_of(config)
    hidden = torch.randn(B, T, D, requires_grad=True)
    weights = torch.rand(B, T) * (torch.rand(B, T) > 0.4)
    sums = made(hidden, targets, weights)
    inputs = [hidden, *made.parameters()]
    found = torch.autograd.grad(sums.objective_sum, inputs)
    outputs = F.linear(hidden, made.weight, made.bias).double()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(B):
        for column in range(T):
            total = total + weights[row, column] * plain_loss(config, outputs[row, column], targets[row, column])
    assert sums.loss_sum.item() == pytest.approx(total.item(), rel=EXACT)
    assert sums.weight_sum.item() == pytest.approx(weights.sum().item(), rel=EXACT)
    for mine, wanted in zip(found, torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_target_without_weight_changes_nothing_whatever_stands_there(config: HeadConfig) -> None:
    made, targets = head(config), targets_of(config)
    weights = torch.ones(B, T)
    weights[0, 1] = 0
    spoiled = targets.clone()
    spoiled[0, 1] = -7
    hidden = torch.randn(B, T, D)
    poisoned = hidden.clone()
    poisoned[0, 1] = float("nan")
    poisoned.requires_grad_()
    sums = made(poisoned, spoiled, weights)
    assert sums.loss_sum.item() == made(hidden, targets, weights).loss_sum.item()


def test_smoothing_changes_what_is_minimised_and_leaves_the_loss() -> None:
    config, share = CONFIGS["class"], 0.1
    hidden, targets = torch.randn(B, T, D), targets_of(config)
    plain, smooth = head(config)(hidden, targets), head(config, share)(hidden, targets)
    outputs = F.linear(hidden, head(config).weight).transpose(1, 2)
    wanted = F.cross_entropy(outputs, targets, label_smoothing=share, reduction="sum")
    assert smooth.objective_sum.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert smooth.loss_sum.item() == plain.loss_sum.item()


@pytest.mark.parametrize("predicts", HEADS)
def test_model_with_a_head_has_the_parameters_that_are_counted(predicts: Predicts) -> None:
    for tied in (True, False):
        config = replace(TRUNK, head=CONFIGS[predicts], tie_word_embeddings=tied)
        shapes = {name: tuple(p.shape) for name, p in Transformer(config, "eager").named_parameters()}
        assert shapes == parameter_shapes(config)
        assert "lm_head.weight" not in shapes
        count = count_parameters(config)
        assert count.output == sum(p.numel() for p in head_parameters(config))
        assert forward_flops(config, 8).output == 2 * 8 * 16 * CONFIGS[predicts].outputs


def head_parameters(config: ModelConfig) -> list[torch.nn.Parameter]:
    score = Transformer(config, "eager").score
    assert score is not None
    return list(score.parameters())


def test_output_of_a_position_depends_on_no_later_token() -> None:
    config = replace(TRUNK, head=CONFIGS["class"])
    model = Transformer(config, "eager")
    initialize(model, config, 3)
    tokens = torch.randint(0, 32, (2, 6))
    changed = tokens.clone()
    changed[:, 4:] = 1
    outputs = model(tokens)
    assert isinstance(outputs, Tensor)
    assert outputs.shape == (2, 6, 4)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs[:, :4], model(changed)[:, :4])


def test_model_gives_the_loss_of_its_head_where_there_are_targets() -> None:
    config = replace(TRUNK, head=CONFIGS["number"])
    model = Transformer(config, "eager", label_smoothing=0.0)
    initialize(model, config, 3)
    tokens, weights = torch.randint(0, 32, (2, 6)), torch.zeros(2, 6)
    weights[:, -1] = 1
    sums = model(tokens, torch.full((2, 6), 0.5), weights)
    assert isinstance(sums, LossSums)
    assert sums.weight_sum.item() == 2
    assert sums.loss_sum.item() == pytest.approx(((model(tokens)[:, -1, 0] - 0.5) ** 2).sum().item(), rel=EXACT)


@pytest.mark.parametrize(("predicts", "outputs"), [("class", 1), ("labels", 0), ("number", 2)])
def test_head_of_an_impossible_size_is_refused(predicts: Predicts, outputs: int) -> None:
    with pytest.raises(ValueError, match=f"outputs is {outputs} and predicts '{predicts}': a class is one of at least"):
        HeadConfig(predicts=predicts, outputs=outputs)


def test_configuration_with_a_head_survives_json() -> None:
    config = replace(TRUNK, head=CONFIGS["labels"])
    assert ModelConfig.from_json(asdict(config)) == config
