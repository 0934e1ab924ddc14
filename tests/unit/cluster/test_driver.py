"""What the driver refuses before it touches anything."""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import build_tiny_dataset, tiny_run

from cluster import driver
from cluster.config import RunConfig
from cluster.driver import _forget_unbegun, _open_plan, _outcome
from cluster.errors import RunRefusedError
from cluster.faults.config import HealingConfig
from cluster.healing import HEALING, Decisions
from cluster.storage import retry
from cluster.storage.retry import Backoff
from data_pipeline.config import MixtureEntry
from data_pipeline.errors import OrderError
from data_pipeline.skip_ledger import SkipLedger


@pytest.fixture
def to_the_end(dataset: Path, tmp_path: Path) -> RunConfig:
    """A run whose last step takes the last whole batch of its one epoch."""
    config = tiny_run(tmp_path, dataset)
    once = replace(config.data, dataset=(MixtureEntry(path=str(dataset), max_epochs=1),))
    config = replace(config, data=once, train=replace(config.train, max_steps=1))
    possible = (_open_plan(config, {}).total_sequences or 0) // config.train.global_batch_size
    return replace(config, train=replace(config.train, max_steps=possible))


def test_run_is_accepted_when_its_data_last(to_the_end: RunConfig) -> None:
    _open_plan(to_the_end, {})


def test_run_is_refused_when_its_data_end_without_what_healing_left_out(to_the_end: RunConfig) -> None:
    skips = SkipLedger().add(0, 2 * to_the_end.train.global_batch_size)
    with pytest.raises(OrderError, match="steps are possible"):
        _open_plan(to_the_end, {HEALING: Decisions(skips=skips).to_json()})


def test_run_is_refused_when_its_data_end_without_what_the_configuration_leaves_out(to_the_end: RunConfig) -> None:
    healing = HealingConfig(skip_sequences=((0, 2 * to_the_end.train.global_batch_size),))
    with pytest.raises(OrderError, match="steps are possible"):
        _open_plan(replace(to_the_end, healing=healing), {})


@pytest.fixture(scope="module")
def all_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset without held-out documents."""
    return build_tiny_dataset(tmp_path_factory.mktemp("data"), text_bytes=60_000, validation_fraction=0.0)


def beside(storage: Path, dataset: Path, **evaluation: Any) -> RunConfig:
    """A run evaluated beside its training."""
    config = tiny_run(storage, dataset)
    settings = {"every_steps": 4, "beside_training": True, "sample_tokens": 16, **evaluation}
    return replace(config, evaluation=replace(config.evaluation, **settings))


@pytest.mark.parametrize("nothing", [{"prompts": ()}, {"sample_tokens": 0}, {"prompts": ("Emma was " * 20,)}])
def test_run_is_refused_when_evaluations_beside_the_training_would_measure_nothing(
    nothing: dict[str, Any], all_training: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunRefusedError) as refusal:
        _open_plan(beside(tmp_path, all_training, **nothing), {})
    said = str(refusal.value)
    assert "evaluation.beside_training is on and would measure nothing: of ['emma'] no dataset has held-out" in said
    assert "or leave evaluation.beside_training out." in said


@pytest.mark.parametrize("something", [{}, {"beside_training": False, "prompts": ()}])
def test_run_without_held_out_documents_is_accepted_when_it_writes_or_is_evaluated_in_the_training(
    something: dict[str, Any], all_training: Path, tmp_path: Path
) -> None:
    _open_plan(beside(tmp_path, all_training, **something), {})


def test_run_that_writes_nothing_is_accepted_when_it_has_held_out_documents(dataset: Path, tmp_path: Path) -> None:
    _open_plan(beside(tmp_path, dataset, prompts=()), {})


def test_no_other_error_is_raised_when_the_storage_of_an_unbegun_run_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise OSError(errno.EREMOTEIO, "the store does not answer")

    monkeypatch.setattr(Path, "exists", refuse)
    _forget_unbegun(tmp_path)


def test_run_has_ended_well_when_its_record_cannot_be_read_afterwards(
    to_the_end: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> Any:
        raise OSError(errno.EACCES, "403 Forbidden")

    plan = _open_plan(to_the_end, {})
    monkeypatch.setattr(driver, "read_lines", refuse)
    monkeypatch.setattr(driver, "list_checkpoints", refuse)
    outcome = _outcome(tmp_path, plan, 1, "finished", trained_now=True)
    assert (outcome.status, outcome.validation, outcome.ledger) == ("finished", {}, ())
    assert sum("the run has ended well; only" in message for message in caplog.messages) == 2


def test_outcome_is_whole_when_the_storage_fails_for_a_moment(
    to_the_end: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, waits = [errno.EREMOTEIO] * 2, list[float]()

    def unsteady(path: Path) -> list[dict[str, Any]]:
        if errors:
            raise OSError(errors.pop(), "the store does not answer")
        return [{"kind": "eval", "name": "tiny", "eval/perplexity": 2.0}]

    monkeypatch.setattr(retry, "Backoff", partial(Backoff, sleep=waits.append))
    monkeypatch.setattr(driver, "read_lines", unsteady)
    outcome = _outcome(tmp_path, _open_plan(to_the_end, {}), 1, "finished", trained_now=True)
    assert (outcome.validation, len(outcome.ledger), len(waits)) == ({"tiny": {"perplexity": 2.0}}, 1, 2)
