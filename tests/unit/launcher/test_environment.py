"""Environment variables: the Ray address, the W&B mode, and paths that would vanish with a Ray job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RunConfig
from cluster.jobs.submission import Submission
from data_pipeline.config import DataBuildConfig, DataConfig, MixtureEntry, SourceConfig, TokenizerConfig
from launcher.environment import (
    jobs_address,
    ray_address,
    require_absolute_paths,
    require_lasting_paths,
    submission,
    wandb_api_key,
    wandb_mode,
)
from launcher.errors import ConfigError, UsageError

JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}


@pytest.mark.parametrize(("value", "address"), [({}, None), ({"RAY_ADDRESS": ""}, None), ({"RAY_ADDRESS": "a"}, "a")])
def test_ray_address_is_none_when_unset_or_empty(value: dict[str, str], address: str | None) -> None:
    assert ray_address(value) == address


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_wandb_mode_stays_as_asked(mode: str, tmp_path: Path) -> None:
    assert wandb_mode(mode, {"HOME": str(tmp_path), "WANDB_API_KEY": "x"}) == mode  # type: ignore[arg-type]


def test_wandb_mode_online_is_refused_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no API key for https://api\.wandb\.ai was found.*wandb login"):
        wandb_mode("online", {"HOME": str(tmp_path)})


def test_wandb_mode_auto_is_offline_without_a_key_and_online_with_one(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert wandb_mode("auto", home) == "offline"
    assert wandb_mode("auto", {**home, "WANDB_API_KEY": "x"}) == "online"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    assert wandb_mode("auto", home) == "online"
    assert wandb_mode("auto", {**home, "WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"


def _run(storage: str, dataset: str | tuple[MixtureEntry, ...]) -> RunConfig:
    return RunConfig(name="x", storage=storage, data=DataConfig(dataset=dataset))


def test_relative_paths_are_fine_outside_a_ray_job() -> None:
    require_lasting_paths(_run("runs", "data"), {})


@pytest.mark.parametrize("dataset", ["/shared/data", "sample:austen", (MixtureEntry(path="/shared/data"),)])
def test_absolute_paths_and_samples_are_fine_inside_a_ray_job(
    dataset: str | tuple[MixtureEntry, ...],
) -> None:
    require_lasting_paths(_run("/shared/runs", dataset), JOB)


@pytest.mark.parametrize(
    ("run", "key", "path"),
    [
        (_run("runs", "/shared/data"), "storage", "runs"),
        (_run("/shared/runs", "data"), "data.dataset", "data"),
        (
            _run("/shared/runs", (MixtureEntry(path="/a"), MixtureEntry(path="b"))),
            "data.dataset.1.path",
            "b",
        ),
    ],
)
def test_relative_paths_are_refused_inside_a_ray_job(run: RunConfig, key: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_lasting_paths(run, JOB)
    assert str(caught.value) == (
        f"{key} is '{path}', no absolute path: inside a Ray job it would lie in the job's working directory, "
        f"which is deleted with the job. Give an absolute path that every node sees: {key}=/shared/..."
    )


def test_submission_is_that_of_the_job(tmp_path: Path) -> None:
    assert submission({}) is None
    first = {"metadata": {"job_submission_id": "j1", "job_name": "j1"}}
    assert submission({"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(first)}) == Submission(id="j1", origin="j1")
    again = {"metadata": {"job_submission_id": "j2", "longhaul_origin": "j1", "longhaul_predecessor": "j1"}}
    assert submission({"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(again)}) == Submission(
        id="j2", origin="j1", predecessor="j1"
    )


def test_cluster_of_jobs_is_the_one_that_was_named() -> None:
    assert jobs_address("http://a:1", {"RAY_API_SERVER_ADDRESS": "http://b:1"}) == "http://a:1"
    assert jobs_address(None, {"RAY_API_SERVER_ADDRESS": "http://b:1", "RAY_ADDRESS": "c"}) == "http://b:1"
    for wrong in ("head:8265", "auto", "ray://head:10001", "http://", "bla bla"):
        with pytest.raises(UsageError, match=r"is no address of a Jobs API.*http://head:8265"):
            jobs_address(wrong, {})
    with pytest.raises(UsageError, match=r"no cluster was named.*--address http://HEAD:8265"):
        jobs_address(None, {})


def test_api_key_is_that_of_the_environment_or_the_netrc_file(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert wandb_api_key(home) is None
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert wandb_api_key(home) == "secret"
    assert wandb_api_key({**home, "WANDB_API_KEY": "other"}) == "other"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"output": "out"}, "output"),
        ({"tokenizer": TokenizerConfig(path="t.model")}, "tokenizer.path"),
        ({"sources": (SourceConfig(name="s", path="text"),)}, "sources.0.path"),
    ],
)
def test_relative_path_of_a_build_is_refused_in_a_job(changes: dict[str, Any], key: str) -> None:
    whole = {
        "name": "d",
        "output": "/shared/d",
        "tokenizer": TokenizerConfig(path="/shared/t.model"),
        "sources": (SourceConfig(name="s", path="sample:austen"),),
    }
    require_absolute_paths(DataBuildConfig(**whole))
    with pytest.raises(ConfigError, match=rf"^{key} is '.*', no absolute path: .*{key}=/shared/"):
        require_absolute_paths(DataBuildConfig(**{**whole, **changes}))
