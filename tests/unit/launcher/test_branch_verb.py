"""`longhaul branch` and its configuration: what is refused before any data is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.config import RunConfig
from cluster.run_directory import RunDirectory
from data_pipeline.config import DataConfig
from launcher.cli import app
from launcher.config_file import load_branch_config, resolved_yaml
from launcher.errors import ConfigError
from launcher.training import train


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A run that has just begun."""
    directory = tmp_path / "runs" / "first"
    directory.mkdir(parents=True)
    config = RunConfig(name="first", storage="/elsewhere", data=DataConfig(dataset=str(tmp_path / "data")))
    RunDirectory(directory).create(config, resolved_yaml(config))
    return directory


def _refusal(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "400"}).invoke(app, ["branch", *arguments])
    return result.exit_code, " ".join(result.stderr.split())


def test_configuration_is_the_parents_beside_it_under_another_name(parent: Path) -> None:
    config = load_branch_config(str(parent / "config.yaml"), "second", ["train.max_steps=7"])
    assert (config.name, config.storage) == ("second", str(parent.parent))
    assert config.train.max_steps == 7
    assert config.data.dataset == str(parent.parent.parent / "data")


def test_configuration_takes_another_storage_when_it_is_given(parent: Path) -> None:
    assert load_branch_config(str(parent / "config.yaml"), "second", ["storage=/other"]).storage == "/other"


def test_name_is_refused_when_it_is_given_twice(parent: Path) -> None:
    exit_code, message = _refusal(str(parent), "second", "--from", "4", "name=third")
    assert (exit_code, message) == (
        2,
        "error: override 'name=third': the branch is called second, as its NAME says. Leave this out.",
    )


def test_name_is_refused_when_it_is_no_directory_name(parent: Path) -> None:
    exit_code, message = _refusal(str(parent), "a/b", "--from", "4")
    assert exit_code == 2
    assert "name is 'a/b': it becomes a directory" in message


def test_unknown_key_is_refused_with_a_suggestion(parent: Path) -> None:
    exit_code, message = _refusal(str(parent), "second", "--from", "4", "schedule.warmup=3")
    assert exit_code == 2
    assert "unknown key 'schedule.warmup'; did you mean 'schedule.warmup_steps'?" in message


def test_taken_name_is_refused_before_the_data_is_looked_for(parent: Path) -> None:
    exit_code, message = _refusal(str(parent), "first", "--from", "4")
    assert (exit_code, message) == (
        1,
        f"error: {parent} is a run already, and a branch replaces nothing. Give the branch another NAME, or another "
        "storage=DIRECTORY.",
    )


def test_directory_is_refused_when_it_is_no_run(tmp_path: Path) -> None:
    assert _refusal(str(tmp_path / "absent"), "second", "--from", "4") == (
        1,
        f"error: {tmp_path / 'absent'}: no such run. Name the directory of a run, that is storage/name.",
    )


def test_run_without_its_configuration_is_refused(parent: Path) -> None:
    (parent / "config.yaml").unlink()
    exit_code, message = _refusal(str(parent), "second", "--from", "4")
    assert (exit_code, message) == (
        1,
        f"error: {parent} has no config.yaml, which a branch takes its configuration from. Restore it.",
    )


@pytest.mark.parametrize(("name", "fresh", "where"), [("absent", False, "in .*/absent"), ("first", True, "--fresh")])
def test_training_is_refused_when_its_data_begins_after_steps_that_nobody_made(
    name: str, fresh: bool, where: str, parent: Path
) -> None:
    data = DataConfig(dataset="data", begins_after_step=4)
    config = RunConfig(name=name, storage=str(parent.parent), data=data)
    with pytest.raises(ConfigError, match=rf"data.begins_after_step is 4: .*{where}.* nobody has made them"):
        train(config, fresh=fresh, listener=print)
