"""Every shipped recipe parses, resolves, and says what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import RunConfig
from launcher.config_file import load_config, read_config_text, recipe_names

RECIPES = Path(__file__).parents[2] / "launcher" / "recipes"


def test_every_file_beside_the_recipes_is_one() -> None:
    assert [path.stem for path in sorted(RECIPES.glob("*.y*ml"))] == recipe_names()
    assert {"smoke", "quickstart"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_resolves_and_carries_its_own_name(name: str) -> None:
    config = load_config(name)
    assert config.name == name


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_begins_with_its_purpose_hardware_and_time(name: str) -> None:
    _, text = read_config_text(name)
    header = text.split("\nname:")[0]
    assert header.startswith(f"# {name}: ")
    assert "# Hardware: " in header
    assert "Time: " in header


@pytest.mark.parametrize("name", ["smoke", "quickstart"])
def test_recipe_shows_what_the_system_is_for(name: str) -> None:
    config = load_config(name)
    assert isinstance(config, RunConfig)
    assert config.data.dataset == "sample:austen"
    assert config.resources.workers == 2
    assert config.zero.stage == 2
    assert config.train.max_steps // config.checkpoint.every_steps >= 2
