"""Each verb trains its task, and names the other where it is asked for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.config_file import load_run_config
from launcher.errors import ConfigError
from launcher.tasks import require_task_of, verb_of

USE_FINETUNE = (
    "task is instruction, and `pretrain` trains the task pretrain: every token of the data. Use `longhaul finetune`, "
    "or set task=pretrain."
)
USE_PRETRAIN = (
    "task is pretrain, and `finetune` trains the tasks instruction, sequence_classification, "
    "multi_label_classification, regression, token_classification. Set task to one of them, or use "
    "`longhaul pretrain`, which learns every token of the data."
)


@pytest.mark.parametrize(("recipe", "verb"), [("smoke", "pretrain"), ("dialogues", "finetune")])
def test_verb_of_a_recipe_is_the_one_of_its_task(recipe: str, verb: str) -> None:
    config = load_run_config(recipe)
    assert verb_of(config) == verb
    require_task_of(verb, config)


@pytest.mark.parametrize(
    ("recipe", "verb", "message"), [("dialogues", "pretrain", USE_FINETUNE), ("smoke", "finetune", USE_PRETRAIN)]
)
def test_other_verb_is_refused_with_the_right_one_named(recipe: str, verb: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_task_of(verb, load_run_config(recipe))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("verb", "recipe", "message"),
    [
        (["pretrain"], "dialogues", USE_FINETUNE),
        (["finetune"], "smoke", USE_PRETRAIN),
        (["submit", "pretrain"], "dialogues", USE_FINETUNE),
        (["submit", "finetune"], "smoke", USE_PRETRAIN),
    ],
)
def test_command_is_refused_before_anything_is_touched(
    verb: list[str], recipe: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result: Any = CliRunner().invoke(app, [*verb, recipe], prog_name="longhaul")
    assert result.exit_code == 2
    assert result.stderr == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []
