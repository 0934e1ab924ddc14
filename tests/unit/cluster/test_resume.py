from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import pytest

from cluster.config import RunConfig
from cluster.errors import RunRefusedError
from cluster.resume import changes, check_plan, check_resume
from cluster.run_directory import config_as_dict
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.config import DataConfig
from llm.config import ModelConfig, ScheduleConfig

BASE = RunConfig(name="run", data=DataConfig(dataset="data"), schedule=ScheduleConfig(name="wsd", warmup_steps=10))
# wsd of 400 steps decays over the last 80: its rate depends on max_steps after step 320


def changed(key: str, value: Any, base: RunConfig = BASE) -> dict[str, Any]:
    if "." not in key:
        return config_as_dict(replace(base, **{key: value}))
    part, field = key.split(".")
    return config_as_dict(replace(base, **{part: replace(getattr(base, part), **{field: value})}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resources.workers", 3),
        ("resources.workers", (1, 4)),
        ("faults.on_oom", "halve_micro_batch"),
        ("zero.stage", 3),
        ("train.micro_batch_size", 1),
        ("train.log_every_steps", 1),
        ("train.activation_checkpointing", "full"),
        ("zero.reduce_bucket_elements", 1000),
        ("wandb.mode", "offline"),
        ("checkpoint.every_steps", 7),
        ("evaluation.every_steps", 7),
        ("storage", "elsewhere"),
        ("data.dataset", "moved"),  # compared by the plan's fingerprint
    ],
)
def test_resume_takes_a_change_in_silence_when_the_curve_does_not_depend_on_it(key: str, value: Any) -> None:
    assert check_resume(config_as_dict(BASE), changed(key, value), step=100, run="run") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.precision", "bf16"),
        ("train.compile", True),
        ("model.attention", "eager"),
        ("train.max_steps", 500),
    ],
)
def test_resume_logs_a_change_when_the_law_allows_it(key: str, value: Any) -> None:
    logged = check_resume(config_as_dict(BASE), changed(key, value), step=100, run="run")
    assert [change.key for change in logged] == [key]


def test_resume_logs_another_way_to_compute_experts() -> None:
    base = replace(BASE, model=ModelConfig(num_experts=4))
    logged = check_resume(config_as_dict(base), changed("model.experts", "eager", base), step=100, run="run")
    assert [change.key for change in logged] == ["model.experts"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("initialize_from", "/runs/other"),
        ("model.hidden_size", 128),
        ("train.global_batch_size", 16),
        ("train.batch_size_warmup", (BatchSizeStage(until_step=200, global_batch_size=8),)),
        ("optimizer.learning_rate", 0.5),
        ("optimizer.betas", (0.9, 0.99)),
        ("schedule.warmup_steps", 11),
    ],
)
def test_resume_is_refused_when_the_curve_would_change(key: str, value: Any) -> None:
    with pytest.raises(RunRefusedError, match=rf"{key}: .* -> .*\n.*branch RUN --from 100 NAME.*--fresh"):
        check_resume(config_as_dict(BASE), changed(key, value), step=100, run="run")


@pytest.mark.parametrize(("step", "max_steps", "allowed"), [(320, 500, True), (321, 500, False), (300, 310, False)])
def test_longer_or_shorter_run_is_allowed_when_still_on_the_plateau(step: int, max_steps: int, allowed: bool) -> None:
    after = changed("train.max_steps", max_steps)
    if allowed:
        assert len(check_resume(config_as_dict(BASE), after, step=step, run="run")) == 1
    else:
        with pytest.raises(RunRefusedError, match="schedule has begun to depend on it"):
            check_resume(config_as_dict(BASE), after, step=step, run="run")


def test_refusal_says_how_to_keep_a_rate_that_follows_from_the_depth() -> None:
    base = replace(BASE, depth=6)
    after = changed("optimizer.learning_rate", 2e-3, base) | {"train": changed("train.max_steps", 500, base)["train"]}
    remedy = r"-> 0\.002 \(depth derives what is not stated: optimizer\.learning_rate=0\.001 keeps it\)"
    with pytest.raises(RunRefusedError, match=remedy):
        check_resume(config_as_dict(base), after, step=100, run="run")


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_longer_run_is_refused_when_the_schedule_falls_from_its_warmup_on(name: Literal["cosine", "linear"]) -> None:
    base = replace(BASE, schedule=ScheduleConfig(name=name, warmup_steps=10))
    with pytest.raises(RunRefusedError, match=r"train\.max_steps"):
        check_resume(config_as_dict(base), changed("train.max_steps", 500, base), step=20, run="run")


def test_plan_is_refused_when_it_gives_other_batches() -> None:
    with pytest.raises(RunRefusedError, match="data plan seq_len: 32 -> 64"):
        check_plan({"seq_len": 32}, {"seq_len": 64}, step=1, run="run")


def test_changes_names_leaves_when_mappings_are_nested() -> None:
    found = changes({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4})
    assert [str(change) for change in found] == ["a.c: 2 -> 5", "d: 3 -> None", "e: None -> 4"]


def without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The configuration as a version wrote it that did not know some keys."""
    older = json.loads(json.dumps(document))
    for key in keys:
        *sections, last = key.split(".")
        part = older
        for section in sections:
            part = part[section]
        del part[last]
    return older


@pytest.mark.parametrize(
    "key",
    [
        "model.qk_norm",
        "optimizer.betas",
        "schedule.name",
        "train.max_steps",
        "train.batch_size_warmup",
        "optimizer",
        "task",
        "initialize_from",
    ],
)
def test_resume_takes_the_default_when_an_older_version_did_not_know_the_key(key: str) -> None:
    base = replace(BASE, schedule=ScheduleConfig(warmup_steps=10))
    now = config_as_dict(base)
    assert check_resume(without(now, key), now, step=100, run="run") == []


def test_resume_is_refused_when_a_key_that_the_checkpoint_lacks_is_not_at_its_default() -> None:
    now = changed("model.qk_norm", True)
    with pytest.raises(RunRefusedError, match=r"model\.qk_norm: False -> True"):
        check_resume(without(config_as_dict(BASE), "model.qk_norm"), now, step=100, run="run")


def test_resume_takes_a_checkpoint_whose_version_had_other_keys_of_faults() -> None:
    older = without(config_as_dict(BASE), "faults")
    older["resources"]["max_failures"] = 3
    assert check_resume(older, config_as_dict(BASE), step=100, run="run") == []


def test_resume_is_refused_when_the_checkpoint_has_a_key_that_is_not_known() -> None:
    newer = config_as_dict(BASE)
    newer["model"]["of_the_future"] = 1
    with pytest.raises(RunRefusedError, match=r"model\.of_the_future: 1 -> None"):
        check_resume(newer, config_as_dict(BASE), step=100, run="run")
