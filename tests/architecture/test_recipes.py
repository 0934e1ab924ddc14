"""Every shipped recipe parses, resolves, and says what it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.config import RunConfig
from launcher.config_file import load_config, read_config_text, recipe_names
from launcher.errors import ConfigError
from llm.accounting import count_parameters

RECIPES = Path(__file__).parents[2] / "launcher" / "recipes"
ON_THE_SAMPLE = ("quickstart", "smoke")
TUNING = ("dialogues", "ratings", "sentiment", "tagging")
PUBLISHED = {
    "gpt2-125m": (124.4e6, 524_288),  # openai/gpt-2, without its learned positions; arXiv:2005.14165, table 2.1
    "llama-1b": (1.23e9, 2_097_152),  # model card of Llama 3.2; arXiv:2401.02385
    "llama-8b": (8.03e9, 4_194_304),  # model card of Llama 3.1; arXiv:2307.09288, section 2.2
    "llama-70b": (70.6e9, 4_194_304),
}
"""Parameters as published, which the recipe must meet within one per cent, and tokens in a step."""
PARAMETER_TOLERANCE = 0.01


def _resolved(name: str) -> RunConfig:
    """The recipe as a person uses it: with a dataset, where it brings none."""
    config = load_config(name, () if name in (*ON_THE_SAMPLE, *TUNING) else ["data.dataset=/data/x"])
    assert isinstance(config, RunConfig)
    return config


def test_every_file_beside_the_recipes_is_one() -> None:
    assert [path.stem for path in sorted(RECIPES.glob("*.y*ml"))] == recipe_names()
    assert set(recipe_names()) == {*ON_THE_SAMPLE, *TUNING, *PUBLISHED}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_resolves_and_carries_its_own_name(name: str) -> None:
    assert _resolved(name).name == name


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_begins_with_its_purpose_hardware_and_time(name: str) -> None:
    _, text = read_config_text(name)
    header = text.split("\nname:")[0]
    assert header.startswith(f"# {name}: ")
    assert "# Hardware: " in header
    assert "Time: " in header


@pytest.mark.parametrize("name", ON_THE_SAMPLE)
def test_recipe_shows_what_the_system_is_for(name: str) -> None:
    config = _resolved(name)
    assert config.data.dataset == "sample:austen"
    assert config.resources.workers == 2
    assert config.zero.stage == 2
    assert config.train.max_steps // config.checkpoint.every_steps >= 2


@pytest.mark.parametrize("name", TUNING)
def test_recipe_states_no_model_when_it_is_to_begin_with_given_weights(name: str) -> None:
    config = _resolved(name)
    assert config.task != "pretrain"
    assert str(config.data.dataset).startswith("sample:")
    assert config.data.packing == ("documents" if name == "dialogues" else "examples")
    assert ("\nmodel:" in read_config_text(name)[1]) == (name == "tagging")


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_names_the_override_to_give_when_it_has_no_dataset(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert str(caught.value).startswith(
        f"recipe '{name}': data.dataset is missing. Give data.dataset=VALUE on the command line. ("
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_has_the_published_number_of_parameters_and_states_it(name: str) -> None:
    found = count_parameters(_resolved(name).model).total
    published, _ = PUBLISHED[name]
    assert abs(found - published) <= PARAMETER_TOLERANCE * published
    assert f"{found:,} parameters" in read_config_text(name)[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_trains_as_many_tokens_a_step_as_its_comment_says(name: str) -> None:
    config = _resolved(name)
    tokens = config.train.global_batch_size * config.data.seq_len
    assert tokens == PUBLISHED[name][1]
    stated = re.search(r"max_steps: \d+ +# ([\d,]+) tokens each", read_config_text(name)[1])
    assert stated is not None
    assert stated[1] == f"{tokens:,}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_divides_its_batch_evenly_and_ends_its_schedule(name: str) -> None:
    config = _resolved(name)
    assert config.train.global_batch_size % (config.resources.workers * config.train.micro_batch_size) == 0
    assert config.schedule.warmup_steps + (config.schedule.decay_steps or 0) < config.train.max_steps
    assert config.train.max_steps % config.checkpoint.every_steps == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_states_the_checkpoint_it_writes(name: str) -> None:
    size = 12 * count_parameters(_resolved(name).model).total / 1e9  # fp32 masters and two moments
    stated = f"{size:.1f}" if size < 10 else f"{size:.0f}"
    assert f"Each checkpoint: {stated} GB" in read_config_text(name)[1]
