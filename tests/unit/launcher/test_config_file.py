"""Configuration files: what loads, what comes back, and every message in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RunConfig
from data_pipeline.config import DataBuildConfig
from launcher.config_file import (
    load_build_config,
    load_config,
    load_run_config,
    recipe_names,
    resolved_yaml,
    schema,
)
from launcher.errors import ConfigError

CHECKPOINT_KEYS = "every_steps, keep_last, keep_every_steps, keep_every_minutes, local_copy"
RUN = "name: x\ndata: {dataset: a}\n"
RECIPES = "dialogues, gpt2-125m, llama-1b, llama-70b, llama-8b, quickstart, ratings, sentiment, smoke, tagging"
BUILD = "name: x\noutput: o\nsources: [{name: a, path: b}]\n"


@pytest.fixture
def config_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        return "c.yaml"

    return write


def _refusal(load: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load()
    return str(caught.value)


def test_load_run_config_reads_numbers_lists_and_overrides(config_path: Callable[[str], str]) -> None:
    path = config_path(RUN + "optimizer: {learning_rate: 3e-4, betas: [0.8, 0.9]}\n")
    config = load_run_config(path, ["train.max_steps=70", "data.dataset=[{path: a}, {path: b}]", "wandb.mode=offline"])
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.train.max_steps == 70
    assert [entry.path for entry in config.data.entries] == ["a", "b"]
    assert config.wandb.mode == "offline"


@pytest.mark.parametrize("name", recipe_names())
def test_resolved_yaml_loads_back_to_an_equal_run_config(name: str, config_path: Callable[[str], str]) -> None:
    overrides = ["data.dataset=a", "optimizer.learning_rate=1e-5", "wandb.group='1e3'", "wandb.project=on"]
    config = load_run_config(name, overrides)
    assert load_run_config(config_path(resolved_yaml(config))) == config


def test_resolved_yaml_loads_back_to_an_equal_build_config(config_path: Callable[[str], str]) -> None:
    pattern = "^(CHAPTER|Letter) [0-9]+: \\\\S"
    config = load_build_config(config_path(BUILD), [f"sources.0.document_separator={pattern!r}"])
    assert load_build_config(config_path(resolved_yaml(config))) == config


def test_load_config_tells_a_build_from_a_run_by_its_sources(config_path: Callable[[str], str]) -> None:
    assert isinstance(load_config(config_path(BUILD)), DataBuildConfig)
    assert isinstance(load_config(config_path(RUN)), RunConfig)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "optimizer.learning_rat=1",
            "unknown key 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?",
        ),
        ("learning_rate=1", "unknown key 'learning_rate'; did you mean 'optimizer.learning_rate'?"),
        ("train.seq_len=1", "unknown key 'train.seq_len'; did you mean 'data.seq_len'?"),
        ("optimiser.name=adamw", "unknown key 'optimiser'; did you mean 'optimizer'?"),
        (
            "train.every_steps=1",
            "unknown key 'train.every_steps'; did you mean 'checkpoint.every_steps' or 'evaluation.every_steps'?",
        ),
        (
            "checkpoint.qqq=1",
            f"unknown key 'checkpoint.qqq'; the keys there are {CHECKPOINT_KEYS}",
        ),
        (
            "data.dataset=[{path: a, wieght: 2}]",
            "unknown key 'data.dataset.0.wieght'; did you mean 'data.dataset.0.weight'?",
        ),
        (
            "data.dataset=3",
            "data.dataset is 3, and must be text or a list of entries {path, weight, max_epochs}. (A dataset "
            "directory, a shipped sample (`sample:austen`, `sample:dialogues`), or a list of {path, weight}.)",
        ),
        ("data.dataset=[a]", "data.dataset.0 is 'a', and must be a section {path, weight, max_epochs}."),
        (
            "model.hidden_size='64'",
            "model.hidden_size is '64', and must be a whole number. Remove the quotes. "
            "(Width D of the residual stream.)",
        ),
        (
            "train.max_steps=1e3",
            "train.max_steps is 1000.0, and must be a whole number. Write 1000. (Optimizer steps.)",
        ),
        (
            "train.max_steps=true",
            "train.max_steps is true, and must be a whole number. (Optimizer steps.)",
        ),
        (
            "data.document_mask=off",
            "data.document_mask is 'off', and must be true or false. Write false. "
            "(Keep attention and targets within a document; false lets them cross.)",
        ),
        (
            "zero.stage=5",
            "zero.stage is 5, and must be one of 0, 1, 2, 3. (What is partitioned over workers: 0 nothing, "
            "1 optimizer state, 2 and gradients, 3 and parameters.)",
        ),
        (
            "resources.gpus_per_worker=two",
            "resources.gpus_per_worker is 'two', and must be auto or a whole number. "
            "(GPUs of one worker: 0 or 1. `auto` takes 1 where the cluster has any.)",
        ),
        (
            "optimizer.betas=[0.9]",
            "optimizer.betas is [0.9], and must be a list of 2 numbers. (Decay rates of the two moments; adamw, muon.)",
        ),
        (
            "optimizer.betas=[0.9, 0.9, 0.9]",
            "optimizer.betas is [0.9, 0.9, 0.9], and must be a list of 2 numbers. "
            "(Decay rates of the two moments; adamw, muon.)",
        ),
        (
            "checkpoint=null",
            f"checkpoint is null, and must be a section {{{CHECKPOINT_KEYS}}}. (Checkpoints.)",
        ),
        (
            "evaluation.every_steps=never",
            "evaluation.every_steps is 'never', and must be a whole number or null. "
            "(Steps between evaluations; one more is made at the end. Null: never.)",
        ),
        ("train.max_steps=0", "train.max_steps is 0, and must be at least 1."),
        (
            "model.num_attention_heads=3",
            "model.num_attention_heads 3 does not divide hidden_size 256: "
            "every head needs the same whole size. Change one of them, or set head_dim.",
        ),
        (
            "model.head_dim=3",
            "model: the head size is 3, which is odd: rotary positions turn pairs of numbers. "
            "Change hidden_size or num_attention_heads, or set an even head_dim.",
        ),
        (
            "name=a/b",
            "name is 'a/b': it becomes a directory, so it takes letters, digits, '.', '_' and '-', "
            "begins with a letter or digit and has at most 128 of them.",
        ),
        ("data.dataset=[]", "data.dataset is an empty list: name at least one dataset."),
    ],
)
def test_load_run_config_names_key_value_rule_and_remedy(
    override: str, problem: str, config_path: Callable[[str], str]
) -> None:
    path = config_path(RUN)
    assert _refusal(lambda: load_run_config(path, [override])) == f"override '{override}': {problem}"


def test_load_run_config_blames_the_file_when_the_mistake_stands_there(config_path: Callable[[str], str]) -> None:
    path = config_path(RUN + "train: {max_step: 3}\n")
    assert _refusal(lambda: load_run_config(path, ["train.log_every_steps=1"])) == (
        "c.yaml: unknown key 'train.max_step'; did you mean 'train.max_steps'?"
    )


def test_load_run_config_blames_the_last_override_when_several_set_the_key(config_path: Callable[[str], str]) -> None:
    refusal = _refusal(lambda: load_run_config(config_path(RUN), ["zero.stage=7", "seed=1", "zero.stage=8"]))
    assert refusal.startswith("override 'zero.stage=8': zero.stage is 8, and must be one of")


def test_load_run_config_blames_the_override_when_a_rule_between_two_keys_is_broken(
    config_path: Callable[[str], str],
) -> None:
    refusal = _refusal(lambda: load_run_config(config_path(RUN), ["resources.workers=99"]))
    assert refusal.startswith("override 'resources.workers=99': resources.workers is 99 and train.global_batch_size 32")


def test_load_run_config_says_of_each_problem_where_it_comes_from_when_there_are_several(
    config_path: Callable[[str], str],
) -> None:
    path = config_path(RUN + "train: {max_step: 3}\n")
    assert _refusal(lambda: load_run_config(path, ["checkpoint.keep=1"])) == (
        "2 problems\n"
        "  - c.yaml: unknown key 'train.max_step'; did you mean 'train.max_steps'?\n"
        "  - override 'checkpoint.keep=1': unknown key 'checkpoint.keep'; did you mean 'checkpoint.keep_last'?"
    )


def test_load_build_config_lists_every_problem(config_path: Callable[[str], str]) -> None:
    path = config_path("name: x\noutput: o\nsources: [{name: a, pth: 1}]\ntokenizer: {}\n")
    assert _refusal(lambda: load_build_config(path)) == (
        "c.yaml: 3 problems\n"
        "  - sources.0.path is missing. "
        "Add it to the file, or give sources.0.path=VALUE on the command line. "
        "(File, directory (read recursively) or glob pattern.)\n"
        "  - unknown key 'sources.0.pth'; did you mean 'sources.0.path'?\n"
        "  - tokenizer takes exactly one of `train` (with its options) and `path` (a .model file)."
    )


def test_load_run_config_asks_for_what_is_missing_when_the_file_is_empty(
    config_path: Callable[[str], str],
) -> None:
    assert _refusal(lambda: load_run_config(config_path("# nothing\n"))) == (
        "c.yaml: 2 problems\n"
        "  - name is missing. Add it to the file, or give name=VALUE on the command line. "
        "(Name of the run; its directory is storage/name.)\n"
        "  - data.dataset is missing. Add it to the file, or give data.dataset=VALUE on the command line. "
        "(A dataset directory, a shipped sample (`sample:austen`, `sample:dialogues`), or a list of {path, weight}.)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: x\nname: y\n",
            "c.yaml, line 2: the key 'name' stands on line 1 already. Remove one of them.",
        ),
        ("- a\n", "c.yaml: the file holds a list, and must hold keys with values (`name: ...`)."),
        ("a\n", "c.yaml: the file holds a single value, and must hold keys with values (`name: ...`)."),
        (RUN + "seed: .nan\n", "c.yaml: 'seed' is nan, and must be a finite number."),
    ],
)
def test_load_run_config_says_where_the_yaml_is_wrong(
    text: str, message: str, config_path: Callable[[str], str]
) -> None:
    assert _refusal(lambda: load_run_config(config_path(text))) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "smok",
            f"no recipe is called 'smok'. Did you mean 'smoke'? Shipped recipes: {RECIPES}. "
            "A configuration file is named with .yaml.",
        ),
        ("absent.yaml", f"absent.yaml: no such file. Shipped recipes: {RECIPES}."),
        ("c", "no recipe is called 'c'. For the file in this directory, write ./c.yaml"),
        ("./", "./: cannot be read: Is a directory."),
    ],
)
def test_load_run_config_says_what_can_be_named(name: str, message: str, config_path: Callable[[str], str]) -> None:
    config_path(RUN)
    assert _refusal(lambda: load_run_config(name)) == message


def test_load_run_config_refuses_bytes_that_are_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_bytes(b"name: \xff\n")
    assert _refusal(lambda: load_run_config("c.yaml")) == "c.yaml: not UTF-8 text (byte 6). Save it as UTF-8."


@pytest.mark.parametrize("root", [RunConfig, DataBuildConfig])
def test_schema_describes_every_key(root: type) -> None:
    document = schema(root)
    sections = {root.__name__: document, **document["$defs"]}
    for name, section in sections.items():
        undescribed = [key for key, entry in section["properties"].items() if "description" not in entry]
        assert not undescribed, f"{name}: {undescribed}"
        assert section["additionalProperties"] is False
    assert document["properties"].keys() == {field.name for field in fields(root) if is_dataclass(root)}
