"""The driver without Ray: what it checks, keeps and says around an attempt that runs in this process."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tiny import SilentLink, build_tiny_dataset, no_tracking, tiny_run

from cluster import driver
from cluster.attempt import Surroundings, run_attempt
from cluster.attempt_record import closing_fields
from cluster.checkpoint import list_checkpoints
from cluster.config import RunConfig
from cluster.driver import Launch, RunOutcome, run_training
from cluster.engines.builders import torch_engine
from cluster.errors import (
    ResourcesError,
    RunBusyError,
    RunRefusedError,
    StorageError,
    TrackingError,
    TrainingFailedError,
)
from cluster.evaluation.language import evaluate_dataset
from cluster.inference import load_run
from cluster.jobs.submission import Submission
from cluster.lease import hold, newest_record
from cluster.on_ray.ray_cluster import Cluster
from cluster.on_ray.session import Desk
from cluster.record.goodput import read_goodput
from cluster.record.logs import read_lines
from cluster.topology import Topology
from data_pipeline.errors import OrderError

MOMENT_ROUNDING_SECONDS = 1e-4  # goodput rounds every figure of the record to a microsecond
LAUNCH = Launch(resolved_yaml="name: tiny\n", wandb_mode="disabled", wandb_server="http://127.0.0.1:9")


class TellingLink(SilentLink):
    """Has events written as they come, as the driver does."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    def post(self, message: dict[str, Any]) -> None:
        super().post(message)
        if message["type"] == "event":
            details = {key: value for key, value in message.items() if key not in ("type", "event")}
            self._desk.events.write(message["event"], **details)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts run in this process, with plain torch, where Ray Train would start workers."""

    def train_here(config: RunConfig, desk: Desk, *, gpus_per_worker: int) -> dict[str, Any]:
        surroundings = Surroundings(
            build_engine=torch_engine, zero_stage=None, link=TellingLink(desk), tracking=no_tracking()
        )
        result = run_attempt(config, Topology(), surroundings)
        return {"step": result.step, "finished": result.finished, "spent": closing_fields(result.spent)}

    @contextmanager
    def nowhere(address: str | None) -> Iterator[Cluster]:
        yield Cluster(attached=address is not None, dashboard_url=None)

    monkeypatch.setattr(driver, "connect", nowhere)
    monkeypatch.setattr(driver, "check_cluster", lambda *_, **__: 0)
    monkeypatch.setattr(driver, "train_on_ray", train_here)


def command(config: RunConfig, **launch: Any) -> RunOutcome:
    return run_training(config, replace(LAUNCH, **launch), lambda message: None)


def events_of(config: RunConfig) -> list[str]:
    return [row["event"] for row in read_lines(Path(config.storage) / config.name / "events.jsonl")]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_finished_run_is_accounted_for(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    outcome = command(config)
    assert (outcome.status, outcome.step, outcome.trained_now) == ("finished", 12, True)
    (ledger,) = outcome.ledger
    assert ledger.trained_tokens == 12 * 6 * 32
    assert ledger.problem() is None
    again = command(config)
    assert (again.trained_now, again.validation) == (False, outcome.validation)
    assert outcome.not_applied == again.not_applied == ()
    assert events_of(config).count("finished") == 1


def test_what_is_asked_of_a_finished_run_is_told_as_not_applied(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    command(config)
    moved = shutil.copytree(dataset, tmp_path / "moved")
    asked = replace(
        config,
        data=replace(config.data, dataset=str(moved)),
        train=replace(config.train, log_every_steps=config.train.log_every_steps + 1),
    )
    (change,) = command(asked).not_applied
    assert (change.key, change.after) == ("train.log_every_steps", config.train.log_every_steps + 1)


def test_run_is_warned_as_it_begins_when_it_ends_before_its_warm_up(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_run(tmp_path, dataset, train__max_steps=2, schedule__warmup_steps=3)
    for _ in range(2):
        command(config)
    assert [message for message in caplog.messages if "schedule.warmup_steps" in message] == [
        "schedule.warmup_steps is 3 and train.max_steps 2: the learning rate never reaches its peak. Lower the one, or "
        "raise the other."
    ]


def test_end_of_a_run_says_what_its_last_evaluation_and_save_took(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    command(config)
    end = read_lines(tmp_path / "tiny" / "events.jsonl")[-1]
    assert end["event"] == "finished"
    assert end["time/evaluation_seconds"] > 0
    assert end["time/checkpoint_seconds"] > 0
    in_lines = sum(row.get("time/evaluation_seconds", 0) for row in read_lines(tmp_path / "tiny" / "metrics.jsonl"))
    assert read_goodput(tmp_path / "tiny").parts.evaluation == pytest.approx(
        in_lines + end["time/evaluation_seconds"], abs=MOMENT_ROUNDING_SECONDS
    )


def test_finished_event_is_added_when_the_driver_died_before_it(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    command(config)
    path = tmp_path / "tiny" / "events.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    command(config)
    assert events_of(config)[-1] == "finished"


def test_last_checkpoint_of_a_finished_run_is_made_again_when_it_was_damaged(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    before = command(config)
    newest = list_checkpoints(tmp_path / "tiny")[-1]
    damage(newest.directory / newest.manifest.files[0].path)
    assert load_run(str(tmp_path / "tiny")).step == 8
    after = command(config)
    assert (after.trained_now, after.validation) == (True, before.validation)
    assert load_run(str(tmp_path / "tiny")).step == 12


def test_old_run_is_set_aside_when_fresh(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    command(config)
    outcome = command(replace(config, seed=99), fresh=True)
    assert outcome.trained_now
    (aside,) = tmp_path.glob("tiny.before-*")
    assert list_checkpoints(aside)[-1].step == 12


def test_old_run_stays_in_place_when_the_fresh_one_is_refused(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    command(config)
    with pytest.raises(OrderError, match="largest possible seq_len"):
        command(tiny_run(tmp_path, dataset, data__seq_len=10**7), fresh=True)
    assert not list(tmp_path.glob("tiny.before-*"))
    assert list_checkpoints(tmp_path / "tiny")[-1].step == 12


def test_changed_seed_is_refused_and_changes_nothing(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    command(config)
    events = events_of(config)
    with pytest.raises(RunRefusedError, match=r"(?s)seed: 1234 -> 7.*pass --fresh"):
        command(replace(config, seed=7))
    assert events_of(config) == events


def test_second_driver_is_refused(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    (tmp_path / "tiny").mkdir()
    with hold(tmp_path / "tiny"), pytest.raises(RunBusyError, match="two drivers would spoil"):
        command(config)


def test_nothing_is_left_when_the_cluster_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise ResourcesError("too few nodes")

    monkeypatch.setattr(driver, "check_cluster", refuse)
    with pytest.raises(ResourcesError):
        command(tiny_run(tmp_path, dataset))
    assert not (tmp_path / "tiny").exists()


def test_run_is_not_set_aside_when_fresh_and_the_cluster_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path, dataset)
    command(config)

    def refuse(*_: Any, **__: Any) -> int:
        raise ResourcesError("too few nodes")

    monkeypatch.setattr(driver, "check_cluster", refuse)
    with pytest.raises(ResourcesError):
        command(config, fresh=True)
    assert list_checkpoints(tmp_path / "tiny")[-1].step == 12


def test_job_that_was_submitted_again_does_not_begin_anew_when_it_was_fresh(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    command(config, fresh=True, job=Submission(id="j", origin="j"))
    again = Submission(id="j-again-1", origin="j", predecessor="j")
    assert not command(config, fresh=True, job=again).trained_now  # its predecessor had finished
    assert command(config, fresh=True, job=Submission(id="k", origin="k")).trained_now


def test_successor_of_a_dead_driver_waits_for_what_is_missing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([ResourcesError("a node is gone"), ResourcesError("still gone"), None])

    def check(*_: Any, **__: Any) -> int:
        if (error := next(answers)) is not None:
            raise error
        return 0

    monkeypatch.setattr(driver, "check_cluster", check)
    monkeypatch.setattr(driver, "_RETRY_SECONDS", 0.0)
    again = Submission(id="j-again-1", origin="j", predecessor="j")
    assert command(tiny_run(tmp_path, dataset), job=again).status == "finished"


def test_record_is_left_to_the_driver_that_took_the_run(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(config: RunConfig, desk: Desk, *, gpus_per_worker: int) -> dict[str, Any]:
        other = newest_record(tmp_path / "tiny")
        path = tmp_path / "tiny" / "lease" / "0000000009.json"
        path.write_text(json.dumps({**asdict(other), "token": 9, "holder": "another", "place": "elsewhere"}))
        raise TrainingFailedError("the cluster failed under the run")

    monkeypatch.setattr(driver, "train_on_ray", lose)
    with pytest.raises(RunBusyError, match=r"taken over by process .* on elsewhere"):
        command(tiny_run(tmp_path, dataset))
    assert not (tmp_path / "tiny" / "events.jsonl").exists()


def test_attempt_changes_nothing_when_another_driver_took_the_run(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    command(config)
    before = (tmp_path / "tiny" / "run.json").read_bytes()
    surroundings = Surroundings(
        build_engine=torch_engine,
        zero_stage=None,
        link=SilentLink(),
        tracking=no_tracking(),
        still_ours=lambda: False,
    )
    with pytest.raises(RunBusyError, match="taken over"):
        run_attempt(config, Topology(), surroundings)
    assert (tmp_path / "tiny" / "run.json").read_bytes() == before


def test_online_tracking_is_refused_at_start_when_the_server_is_unreachable(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset, wandb__mode="online")
    with pytest.raises(TrackingError, match=r"cannot be reached.*wandb\.mode=offline"):
        command(config, wandb_mode="online")
    assert not (tmp_path / "tiny").exists()


def test_cause_reaches_the_person_when_even_its_event_cannot_be_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("the storage is full. Make room.")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(driver, "train_on_ray", fail)
    monkeypatch.setattr("cluster.record.logs.append_durably", full)
    with pytest.raises(StorageError, match="Make room"):
        command(tiny_run(tmp_path, dataset))


def test_tokenizer_in_the_run_is_that_of_the_dataset_when_it_was_built_anew(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "runs", dataset)
    directory = tmp_path / "runs" / "tiny"
    directory.mkdir(parents=True)
    other = build_tiny_dataset(tmp_path, vocab_size=420)
    (directory / "tokenizer.model").write_bytes((other / "tokenizer.model").read_bytes())  # from a start that failed
    command(config)
    loaded = load_run(str(directory))
    assert evaluate_dataset(loaded, str(dataset))["perplexity"] > 1


def test_mixture_of_datasets_of_one_name_is_evaluated_apart(dataset: Path, tmp_path: Path) -> None:
    from data_pipeline.build import build_dataset
    from data_pipeline.config import DataBuildConfig, DataConfig, MixtureEntry, SourceConfig, TokenizerConfig

    text = tmp_path / "more.txt"
    text.write_text("\n\n# ".join(f"Chapter {n}. It rained, and she read on. " * 40 for n in range(20)))
    build_dataset(
        DataBuildConfig(
            name="emma",
            output=str(tmp_path / "more"),
            sources=(SourceConfig(name="more", path=str(text), document_separator="^# "),),
            tokenizer=TokenizerConfig(path=str(dataset / "tokenizer.model")),
            validation_fraction=0.2,
        )
    )
    mixture = (MixtureEntry(path=str(dataset), weight=3.0), MixtureEntry(path=str(tmp_path / "more"), weight=1.0))
    config = replace(tiny_run(tmp_path / "runs", dataset), data=DataConfig(dataset=mixture, seq_len=32))
    outcome = command(config)
    assert len(outcome.validation) == 2
    assert all(name.startswith("emma-") for name in outcome.validation)
