"""The dial `depth`: what it fills in, what it leaves, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RunConfig
from cluster.resume import check_resume
from cluster.run_directory import config_as_dict
from launcher.config_file import load_branch_config, load_run_config, resolved_yaml
from launcher.errors import ConfigError
from llm.scaling import LARGEST_DEPTH

RUN = "name: x\ndata: {dataset: a, seq_len: 512}\nresources: {workers: 1}\n"
DERIVED = (
    "model.hidden_size",
    "model.num_hidden_layers",
    "model.num_attention_heads",
    "model.num_key_value_heads",
    "model.head_dim",
    "model.intermediate_size",
    "optimizer.learning_rate",
    "train.global_batch_size",
    "train.max_steps",
)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., RunConfig]:
    def load(*overrides: str, text: str = RUN) -> RunConfig:
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        return load_run_config(str(tmp_path / "c.yaml"), overrides)

    return load


def value(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def refusal(load: Callable[..., RunConfig], *overrides: str, text: str = RUN) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, text=text)
    return str(caught.value)


def test_depth_decides_what_is_not_stated(load: Callable[..., RunConfig]) -> None:
    config = load("depth=8")
    assert config.depth == 8
    assert [value(config, key) for key in DERIVED] == [512, 8, 4, 4, 128, 1408, 0.003, 128, 7842]
    assert load(text=RUN + "depth: 8\n") == config


def test_nothing_is_derived_when_there_is_no_depth(load: Callable[..., RunConfig]) -> None:
    assert load() == load("depth=null")
    assert load().model.hidden_size == 256


@pytest.mark.parametrize("depth", [1, 2, 3, 10, 33, 64])
def test_every_depth_is_a_valid_run_of_twenty_tokens_a_parameter(depth: int, load: Callable[..., RunConfig]) -> None:
    config = load(f"depth={depth}")
    layers, width, hidden = depth, config.model.hidden_size, config.model.intermediate_size
    matrices = layers * (4 * width**2 + 3 * width * hidden)
    trained = config.train.max_steps * config.train.global_batch_size * config.data.seq_len
    in_a_step = config.train.global_batch_size * config.data.seq_len
    norms = (2 * layers + 1) * width
    assert 0 <= 20 * (matrices + norms) - trained < in_a_step + config.data.seq_len


@pytest.mark.parametrize(
    ("key", "stated"),
    [
        ("model.hidden_size", 384),
        ("model.num_hidden_layers", 8),
        ("model.num_attention_heads", 16),
        ("model.num_key_value_heads", 2),
        ("model.head_dim", 64),
        ("model.intermediate_size", 1000),
        ("optimizer.learning_rate", 1e-5),
        ("train.global_batch_size", 7),
        ("train.max_steps", 70),
    ],
)
def test_stated_field_wins_over_depth(key: str, stated: float, load: Callable[..., RunConfig]) -> None:
    assert value(load("depth=8", f"{key}={stated}"), key) == stated
    assert value(load(f"{key}={stated}", "depth=8"), key) == stated


def test_null_is_a_statement_where_it_means_something(load: Callable[..., RunConfig]) -> None:
    assert load("depth=8", "model.head_dim=null").model.head_dim is None
    assert load("depth=8", "model.num_key_value_heads=null").model.num_key_value_heads is None


def test_steps_follow_the_stated_batch(load: Callable[..., RunConfig]) -> None:
    usual, small = load("depth=8"), load("depth=8", "train.global_batch_size=64")
    assert small.train.max_steps == pytest.approx(2 * usual.train.max_steps, abs=1)
    assert small.optimizer.learning_rate == usual.optimizer.learning_rate


def test_rate_follows_the_tokens_of_stated_steps(load: Callable[..., RunConfig]) -> None:
    usual, short = load("depth=16"), load("depth=16", "train.max_steps=1000")
    part = 1000 / usual.train.max_steps
    assert short.optimizer.learning_rate == pytest.approx(usual.optimizer.learning_rate * part**0.307, rel=5e-3)


def test_steps_count_the_smaller_batches_of_a_warm_up(load: Callable[..., RunConfig]) -> None:
    config = load("depth=8", "train.batch_size_warmup=[{until_step: 1000, global_batch_size: 64}]")
    assert config.train.max_steps == pytest.approx(load("depth=8").train.max_steps + 500, abs=1)


def test_written_configuration_comes_back_as_it_is(load: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = load("depth=8", "model.num_attention_heads=16", "train.max_steps=70")
    (tmp_path / "config.yaml").write_text(resolved_yaml(config), encoding="utf-8")
    again = load_run_config(str(tmp_path / "config.yaml"))
    assert again == config
    assert check_resume(config_as_dict(config), config_as_dict(again), step=9, run="x") == []


def test_run_goes_on_when_its_numbers_are_stated_in_place_of_its_depth(load: Callable[..., RunConfig]) -> None:
    config = load("depth=8")
    spelled_out = load("depth=null", text=resolved_yaml(config))
    assert spelled_out.depth is None
    assert check_resume(config_as_dict(config), config_as_dict(spelled_out), step=9, run="x") == []


def test_another_depth_is_refused_when_the_layers_are_stated(load: Callable[..., RunConfig], tmp_path: Path) -> None:
    message = (
        "depth is 9 and model.num_hidden_layers 8: both are the number of layers, and stated numbers are never changed "
        "by depth. Leave depth out, or leave out num_hidden_layers and whatever else depth is to decide."
    )
    text = resolved_yaml(load("depth=8"))
    assert refusal(load, "depth=9", text=text) == f"override 'depth=9': {message}"
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"depth is 9 and model\.num_hidden_layers 8"):
        load_branch_config(str(tmp_path / "config.yaml"), "child", ["depth=9"])


@pytest.mark.parametrize("depth", [0, -3, LARGEST_DEPTH + 1])
def test_depth_is_refused_when_it_is_absurd(depth: int, load: Callable[..., RunConfig]) -> None:
    assert refusal(load, f"depth={depth}") == (
        f"override 'depth={depth}': depth is {depth}: it is a number of decoder layers, from 1 to {LARGEST_DEPTH}, or "
        "null for none. 4 is a model for a laptop, 12 has the layers and the width of GPT-2 small."
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("depth=deep",), "depth is 'deep', and must be a whole number or null."),
        (("depth=true",), "depth is true, and must be a whole number or null."),
        (("depth=8", "model=3"), "model is 3, and must be a section"),
        (("depth=8", "model.hidden_size=wide"), "model.hidden_size is 'wide', and must be a whole number."),
        (("depth=8", "model.hidden_size=0"), "model.hidden_size is 0, and must be above 0."),
        (("depth=8", "model.num_attention_heads=null"), "model.num_attention_heads is null, and must be a whole"),
        (("depth=8", "model.width=3"), "unknown key 'model.width'"),
        (("depth=8", "model.head_dim=3"), "the head size is 3, which is odd"),
        (("depth=8", "data.seq_len=long"), "data.seq_len is 'long', and must be a whole number."),
        (("depth=8", "data.seq_len=0"), "data.seq_len is 0, and must be above 0."),
        (("depth=8", "train.max_steps=0"), "train.max_steps is 0, and must be at least 1."),
        (
            ("depth=8", "train.batch_size_warmup=[{until_step: 9, global_batch_size: 128}]"),
            "train.batch_size_warmup leads from 128 sequences to 128",
        ),
        (("depth=1", "data.seq_len=4096", "resources.workers=2"), "workers is 2 and train.global_batch_size 1"),
    ],
)
def test_mistakes_beside_depth_are_told_as_without_it(
    overrides: tuple[str, ...], told: str, load: Callable[..., RunConfig]
) -> None:
    message = refusal(load, *overrides)
    assert message.startswith("override '")
    assert told in message


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ("{name: sgd}", "sgd"),
        ("{name: muon, learning_rate_adjustment: original}", "muon with learning_rate_adjustment original"),
    ],
)
def test_rate_must_be_stated_when_the_optimizer_takes_other_rates(
    optimizer: str, told: str, load: Callable[..., RunConfig]
) -> None:
    assert refusal(load, "depth=8", f"optimizer={optimizer}") == (
        f"depth is 8, optimizer.name {told} and optimizer.learning_rate is not stated: the rule that gives a rate for "
        "a depth was measured with AdamW's. State optimizer.learning_rate, or take adamw."
    )
    stated = load("depth=8", f"optimizer={optimizer}", "optimizer.learning_rate=0.02")
    assert stated.optimizer.learning_rate == 0.02


def test_muon_takes_the_rate_when_it_is_adjusted_to_adamws(load: Callable[..., RunConfig]) -> None:
    assert load("depth=8", "optimizer={name: muon}").optimizer.learning_rate == 0.003
