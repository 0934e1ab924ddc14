"""What is said of a directory of the wrong kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.directories import require_dataset, require_run, require_run_or_checkpoint
from launcher.errors import LauncherError


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """One directory of each kind, and a path where there is none."""
    files = ("run/run.json", "run/checkpoints/step-00000001/MANIFEST.json", "dataset/manifest.json", "other/a.txt")
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    names = {"checkpoint": "run/checkpoints/step-00000001"}
    return {kind: str(tmp_path / names.get(kind, kind)) for kind in ("run", "checkpoint", "dataset", "other", "absent")}


def _refusal(check: Callable[[], object]) -> str:
    with pytest.raises(LauncherError) as caught:
        check()
    return str(caught.value)


def test_directory_is_returned_when_it_is_what_is_wanted(places: dict[str, str]) -> None:
    assert require_run(places["run"]) == Path(places["run"])
    assert require_dataset(places["dataset"]) == Path(places["dataset"])
    for kind in ("run", "checkpoint", "other", "absent"):
        require_run_or_checkpoint(places[kind])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "{absent}: no such run. Name the directory of a run, that is storage/name."),
        ("checkpoint", "{checkpoint} is one checkpoint. Name its run: {run}."),
        (
            "dataset",
            "{dataset} is a dataset, and has no checkpoints. `longhaul data verify {dataset}` checks it, "
            "`longhaul data stats {dataset}` describes it.",
        ),
        (
            "other",
            "{other} is neither a run nor a dataset: a run has a run.json, a dataset a manifest.json. "
            "Name the directory of a run, that is storage/name.",
        ),
    ],
)
def test_run_is_asked_for_when_the_directory_is_another(kind: str, message: str, places: dict[str, str]) -> None:
    assert _refusal(lambda: require_run(places[kind])) == message.format(**places)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "absent",
            "{absent} is no dataset: there is no such directory. Check the path, or build it with "
            "`longhaul data build CONFIG`.",
        ),
        ("checkpoint", "{checkpoint} is a checkpoint, not a dataset. Its run is {run}."),
        (
            "run",
            "{run} is a run, not a dataset. `longhaul checkpoint list {run}` lists what it has saved, "
            "`longhaul evaluate {run}` scores it.",
        ),
        (
            "other",
            "{other} is no dataset: it has no manifest.json, so it is something else, or its build did not finish. "
            "Check the path, or build it with `longhaul data build CONFIG`.",
        ),
    ],
)
def test_dataset_is_asked_for_when_the_directory_is_another(kind: str, message: str, places: dict[str, str]) -> None:
    assert _refusal(lambda: require_dataset(places[kind])) == message.format(**places)


def test_key_of_the_configuration_is_named_when_its_dataset_is_missing(places: dict[str, str]) -> None:
    absent = places["absent"]
    assert _refusal(lambda: require_dataset(absent, "data.dataset")) == (
        f"data.dataset is '{absent}', which is no dataset: there is no such directory. Name another with "
        "data.dataset=PATH, or build it with `longhaul data build CONFIG`."
    )


def test_dataset_is_refused_when_a_trained_model_is_wanted(places: dict[str, str]) -> None:
    dataset = places["dataset"]
    assert _refusal(lambda: require_run_or_checkpoint(dataset)) == (
        f"{dataset} is a dataset, and holds no trained model. Name a run's directory (storage/name) or one of its "
        f"checkpoints. `longhaul data stats {dataset}` describes the dataset."
    )
