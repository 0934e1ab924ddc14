"""Optimizer options: used or refused, and never anything between."""

from __future__ import annotations

from typing import Any

import pytest

from llm.config import OptimizerConfig


@pytest.mark.parametrize(
    ("optimizer", "option"),
    [
        ("sgd", {"betas": (0.9, 0.99)}),
        ("sgd", {"eps": 1e-6}),
        ("adamw", {"momentum": 0.9}),
        ("adamw", {"nesterov": False}),
        ("sgd", {"ns_steps": 6}),
        ("adamw", {"learning_rate_adjustment": "original"}),
    ],
)
def test_option_is_refused_when_the_optimizer_has_no_use_for_it(optimizer: Any, option: dict[str, Any]) -> None:
    (name, _), *_ = option.items()
    with pytest.raises(
        ValueError, match=rf"^{name} is .*optimizer\.name is {optimizer}, .*Leave {name} out, or change"
    ):
        OptimizerConfig(name=optimizer, **option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"name": "muon", "momentum": 1.0}, "momentum is 1.0: it must be at least 0 and under 1."),
        ({"name": "sgd", "momentum": 0.0}, "nesterov is on and momentum is 0, .*Set nesterov to false."),
        ({"name": "muon", "ns_steps": 0}, "ns_steps is 0: it must be from 1 to 99."),
    ],
)
def test_option_is_refused_when_out_of_range(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**option)


def test_options_are_taken_when_the_optimizer_reads_them() -> None:
    assert OptimizerConfig(name="sgd", momentum=0.0, nesterov=False).momentum == 0.0
    assert OptimizerConfig(name="muon", ns_steps=6, betas=(0.8, 0.9), learning_rate_adjustment="original").ns_steps == 6
