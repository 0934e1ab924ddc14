"""Environment variables: the Ray address, the W&B mode, and paths that would vanish with a Ray job."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import RunConfig
from data_pipeline.config import DataConfig, MixtureEntry
from launcher.environment import ray_address, require_lasting_paths, wandb_mode
from launcher.errors import ConfigError

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
        f"{key} is '{path}', a relative path: inside a Ray job it would lie in the job's working directory, "
        f"which is deleted with the job. Give an absolute path that every node sees: {key}=/shared/..."
    )
