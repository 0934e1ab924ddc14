"""The key `initialize_from`: what it fills in, what it refuses, and what a run does when its source has gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RunConfig
from cluster.run_directory import RunDirectory
from launcher.config_file import load_branch_config, load_config, load_run_config, resolved_yaml
from launcher.environment import require_absolute_paths
from launcher.errors import ConfigError
from launcher.training import absolute

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
Load = Callable[..., RunConfig]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The config.json of a Hugging Face directory."""
    directory = tmp_path / "llama"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA))
    return directory


@pytest.fixture
def load(tmp_path: Path, source: Path) -> Load:
    """Reads a configuration of a run that begins from the directory."""

    def load(*overrides: str, model: str = "", fresh: bool = False) -> RunConfig:
        text = (
            f"name: new\nstorage: {tmp_path / 'runs'}\ndata: {{dataset: a, seq_len: 64}}\nresources: {{workers: 1}}\n"
        )
        (tmp_path / "c.yaml").write_text(f"{text}initialize_from: {source}\n{model}")
        return load_run_config(str(tmp_path / "c.yaml"), overrides, fresh=fresh)

    return load


def begin(config: RunConfig) -> Path:
    """The run's directory, as the driver leaves it when it begins."""
    directory = Path(config.storage) / config.name
    directory.mkdir(parents=True)
    RunDirectory(directory).create(config, resolved_yaml(config))
    return directory


def refusal(load: Load, *overrides: str, model: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, model=model)
    return str(caught.value)


def test_model_is_that_of_the_directory_when_nothing_is_stated(load: Load) -> None:
    model = load().model
    assert (model.vocab_size, model.hidden_size, model.num_hidden_layers) == (97, 32, 3)
    assert (model.rope_theta, model.tie_word_embeddings, model.max_position_embeddings) == (5e5, False, 128)
    assert model.rope_scaling is not None
    assert model.rope_scaling.factor == 8.0


def test_shown_configuration_has_the_numbers_and_is_read_back_as_it_is(load: Load, tmp_path: Path) -> None:
    config = load()
    (tmp_path / "shown.yaml").write_text(resolved_yaml(config))
    assert "  num_hidden_layers: 3\n" in resolved_yaml(config)
    assert load_config(str(tmp_path / "shown.yaml")) == config


@pytest.mark.parametrize(
    "stated", ["hidden_size: 32", "vocab_size: null", "head_dim: 8", "attention: eager", "residual_dropout: 0.1"]
)
def test_what_is_stated_stays_when_the_weights_allow_it(stated: str, load: Load) -> None:
    key, value = stated.split(": ")
    model = load(model=f"model: {{{stated}}}").model
    assert str(getattr(model, key)) == {"null": "97"}.get(value, value)
    assert model.num_hidden_layers == 3


def test_longest_sequence_may_be_another_since_positions_are_rotated(load: Load) -> None:
    assert load("model.max_position_embeddings=null").model.max_position_embeddings is None


def test_contradiction_is_refused_with_both_values(load: Load, source: Path) -> None:
    told = refusal(load, "model.rope_theta=1e4", model="model: {num_hidden_layers: 4, hidden_size: 32}")
    assert told == (
        f"initialize_from is {source}, which decides the model, and the configuration states another: "
        "model.num_hidden_layers is 4 and 3 there, model.rope_theta is 10000.0 and 500000.0 there. Leave these keys "
        "out, so that they are taken from there, or begin with random weights by leaving out initialize_from."
    )


def test_value_that_is_not_allowed_is_left_to_the_validation(load: Load) -> None:
    assert "model.hidden_size" in refusal(load, model="model: {hidden_size: big}")
    assert "unknown key 'model.hidden'" in refusal(load, model="model: {hidden: 32}")


def test_depth_decides_the_rest_for_the_layers_of_the_source(load: Load) -> None:
    assert load("depth=3").optimizer.learning_rate != load().optimizer.learning_rate
    assert "depth is 4 and model.num_hidden_layers 3" in refusal(load, "depth=4")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "which is no run (run.json), no checkpoint"),
        ("{}", "model_type is None, and the families known here are"),
        (json.dumps({**LLAMA, "quantization_config": {}}), "quantization_config"),
    ],
)
def test_source_that_cannot_be_used_is_refused(content: str | None, told: str, load: Load, source: Path) -> None:
    if content is None:
        shutil.rmtree(source)
    else:
        (source / "config.json").write_text(content)
    assert refusal(load).startswith("initialize_from")
    assert str(source) in refusal(load)
    assert told in refusal(load)


def test_run_that_has_begun_knows_its_model_when_the_source_is_gone(load: Load, source: Path) -> None:
    before = load("model.residual_dropout=0.1")
    begin(before)
    shutil.rmtree(source)
    assert load() == before
    assert load(fresh=True) == before  # so that a job that began it anew goes on
    assert "which is no run" in refusal(load, "name=other")


def test_run_that_has_begun_does_not_look_at_the_source_unless_it_begins_anew(load: Load, source: Path) -> None:
    begin(load())
    (source / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 5}))
    assert load().model.num_hidden_layers == 3
    assert load(fresh=True).model.num_hidden_layers == 5


def test_branch_needs_no_source(load: Load, source: Path) -> None:
    parent = begin(load())
    shutil.rmtree(source)
    assert load_branch_config(str(parent / "config.yaml"), "child").model.num_hidden_layers == 3


def test_paths_are_named_from_the_root(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load("initialize_from=llama")
    assert absolute(config).initialize_from == str(tmp_path / "llama")
    with pytest.raises(ConfigError, match=r"initialize_from is 'llama', no absolute path: inside a Ray job"):
        require_absolute_paths(config)
    require_absolute_paths(load("data.dataset=/data"))
