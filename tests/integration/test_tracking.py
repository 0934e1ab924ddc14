"""Attempts with real offline W&B: what its files hold, and what its death does to a training."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb_files
from poison import Poison
from processes import descendants
from tiny import SilentLink, begin, tiny_run

from cluster import attempt as attempts
from cluster.attempt import EngineRequest, Surroundings, run_attempt
from cluster.config import RunConfig
from cluster.engines.builders import torch_engine
from cluster.engines.protocol import Engine
from cluster.errors import CheckpointError
from cluster.record.logs import EventsLog, StepLog, read_lines
from cluster.record.wandb_mirror import TrackingSettings, WandbMirror, announce_failure
from cluster.topology import Topology

WITHOUT_WAITING_SECONDS = 50.0  # the run takes 5 s on an idle machine, and a wait for W&B would be 60 s
API_KEY = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = TrackingSettings(
    mode="offline",
    project="test",
    run_id="abcd1234",
    name="tiny",
    group="trials",
    job_type="pretrain",
    tags=("small", "prose"),
    notes="a note",
    api_key=API_KEY,
)


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    """W&B leaves variables behind; what the person running the tests has set is not part of them."""
    before = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("WANDB_")}
    yield
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        del os.environ[key]
    os.environ.update(before)


def attempt(
    config: RunConfig,
    *,
    stop_after: int | None = None,
    tracking: TrackingSettings = OFFLINE,
    observe: Callable[[Any], None] = lambda batch: None,
    build_engine: Callable[[EngineRequest], Engine] = torch_engine,
) -> None:
    """One attempt with plain torch in this process, its events written as the driver does."""
    directory = begin(config)
    events = EventsLog(directory, clock=lambda: 1000.0)
    link = SilentLink(stop_after)
    surroundings = Surroundings(
        build_engine=build_engine, zero_stage=None, link=link, tracking=tracking, observe=observe
    )
    try:
        run_attempt(config, Topology(), surroundings)
    finally:
        for event in link.events():
            events.write(event["event"], **{key: value for key, value in event.items() if key not in ("type", "event")})


def tracked_run(storage: Path, dataset: Path) -> RunConfig:
    config = tiny_run(storage, dataset, evaluation__every_steps=3, wandb__mode="offline")
    return replace(config, evaluation=replace(config.evaluation, prompts=("", "Emma was"), sample_tokens=8))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.01)


def record_of(config: RunConfig, name: str) -> list[dict[str, Any]]:
    return read_lines(Path(config.storage) / config.name / name)


@pytest.fixture(scope="module")
def continued(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that was stopped once and continued to its end."""
    config = tracked_run(tmp_path_factory.mktemp("continued"), dataset)
    attempt(config, stop_after=7)
    attempt(config)
    return config


def offline_files(config: RunConfig) -> list[Path]:
    return list((Path(config.storage) / config.name / "wandb").glob("offline-run-*/*.wandb"))


def newest(config: RunConfig) -> Path:
    return wandb_files.newest(Path(config.storage) / config.name)


def assert_complete(config: RunConfig) -> None:
    """The newest offline directory alone holds every line of the record, and the tables."""
    rows = wandb_files.history(newest(config))
    logged = {row["train/step"]: row["train/loss"] for row in rows if "train/loss" in row}
    lines = record_of(config, "metrics.jsonl")
    assert logged == {line["step"]: line["train/loss"] for line in lines if line["kind"] == "train"}
    texts = [(row["train/step"], row["sample/text"]) for row in rows if "sample/text" in row]
    samples = record_of(config, "samples.jsonl")
    assert texts == [(line["step"], line["text"]) for line in samples]
    table = wandb_files.table(newest(config), "samples")
    assert [(row["step"], row["prompt"], row["text"]) for row in table] == [
        (line["step"], line["prompt"], line["text"]) for line in samples
    ]
    table = wandb_files.table(newest(config), "evaluations")
    assert [(row["step"], row["name"], row["loss"], row["perplexity"]) for row in table] == [
        (line["step"], line["name"], line["eval/loss"], line["eval/perplexity"])
        for line in lines
        if line["kind"] == "eval"
    ]


def test_newest_offline_directory_is_complete_when_continued(continued: RunConfig) -> None:
    assert len(offline_files(continued)) == 2
    assert_complete(continued)
    assert [row["step"] for row in record_of(continued, "samples.jsonl")] == [3, 3, 6, 6, 9, 9, 12, 12]


def test_history_holds_what_experts_did_over_the_steps(dataset: Path, tmp_path: Path) -> None:
    config = tracked_run(tmp_path, dataset)
    model = replace(config.model, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    train = replace(config.train, max_steps=3, z_loss_coefficient=1e-4)
    config = replace(config, model=model, train=train)
    attempt(config)
    lines = [line for line in record_of(config, "metrics.jsonl") if line["kind"] == "train"]
    rows = [row for row in wandb_files.history(newest(config)) if "train/loss" in row]
    assert [row["train/step"] for row in rows] == [1, 2, 3]
    for key in (
        "train/router_balance",
        "train/router_z",
        "train/z_loss",
        "router/largest_load",
        "router/smallest_load",
    ):
        assert [row[key] for row in rows] == [line[key] for line in lines], key
    assert all(line["router/largest_load"] > 1 > line["router/smallest_load"] for line in lines)
    assert wandb_files.axes(newest(config)) == {"*": "train/step"}


def test_config_holds_the_whole_configuration_and_the_resolved_model(continued: RunConfig) -> None:
    config = wandb_files.config(newest(continued))
    assert config["optimizer"]["learning_rate"] == 3e-3
    assert config["data"]["seq_len"] == 32
    assert config["model"]["vocab_size"] == 400
    assert config["model"]["parameters"] > 400 * 32
    assert config["layout"]["world_size"] == 1


def test_config_holds_the_lineage(continued: RunConfig, dataset: Path) -> None:
    from data_pipeline.dataset import Dataset

    lineage = wandb_files.config(newest(continued))["lineage"]
    opened = Dataset.open(dataset)
    assert lineage["datasets"] == {"emma": opened.fingerprint}
    assert lineage["tokenizer"] == opened.tokenizer_hash
    assert len(lineage["data_plan"]) > 0
    assert len(lineage["run"]["id"]) == 8


def test_run_is_found_by_group_tags_notes_and_job_type(continued: RunConfig) -> None:
    run = wandb_files.identity(newest(continued))
    assert (run.run_group, list(run.tags), run.notes, run.job_type) == (
        "trials",
        ["small", "prose"],
        "a note",
        "pretrain",
    )


def test_summary_holds_the_best_perplexity(continued: RunConfig) -> None:
    values = [row for row in record_of(continued, "metrics.jsonl") if row["kind"] == "eval"]
    best = min(values, key=lambda row: row["eval/perplexity"])
    summary = wandb_files.summary(newest(continued))
    assert summary["best/eval/perplexity"] == best["eval/perplexity"]
    assert summary["best/eval/step"] == best["step"]


def test_summary_says_how_each_attempt_ended(continued: RunConfig) -> None:
    stopped, finished = sorted(offline_files(continued))
    assert wandb_files.summary(stopped)["status"] == "stopped"
    assert wandb_files.summary(finished)["status"] == "finished"


def test_events_of_earlier_attempts_are_a_table(continued: RunConfig) -> None:
    events = [row["event"] for row in wandb_files.table(newest(continued), "events")]
    assert events[0] == "started"
    assert "checkpoint_saved" in events


def test_run_that_ends_well_raises_no_alert(continued: RunConfig) -> None:
    assert wandb_files.alerts(newest(continued)) == []
    assert wandb_files.exit_code(newest(continued)) == 0


def test_api_key_is_in_no_file_of_the_run(continued: RunConfig) -> None:
    files = [path for path in Path(continued.storage).rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if API_KEY.encode() in path.read_bytes()] == []
    assert API_KEY not in os.environ.values()
    assert API_KEY not in repr(OFFLINE)


def core_process() -> int:
    """Process id of this process's wandb-core."""
    (pid,) = (pid for pid in descendants(os.getpid()) if Path(f"/proc/{pid}/comm").read_text().strip() == "wandb-core")
    return pid


def test_training_ends_and_newest_offline_directory_is_complete_when_wandb_is_killed(
    dataset: Path, tmp_path: Path
) -> None:
    config = tracked_run(tmp_path, dataset)

    def observe(batch: Any) -> None:
        if batch.step == 5:
            wait_until(lambda: any(wandb_files.history(path) for path in offline_files(config)))
            os.kill(core_process(), signal.SIGKILL)

    attempt(config, observe=observe)
    steps = [row["step"] for row in record_of(config, "metrics.jsonl") if row["kind"] == "train"]
    assert steps == list(range(1, 13))
    assert len(offline_files(config)) == 2
    assert_complete(config)


def lines_shown(path: Path) -> list[tuple[int, int]]:
    """Attempt and step of the train lines in an offline file."""
    return [(row["attempt"], row["train/step"]) for row in wandb_files.history(path) if "train/grad_norm" in row]


def test_training_goes_on_and_no_line_is_missing_when_rolled_back_while_wandb_stands_still(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tracked_run(tmp_path, dataset)
    poison = Poison(math.nan)  # step 11, which goes back to step 8
    released = threading.Event()
    seen: list[int] = []
    start = WandbMirror._start

    def start_late(mirror: WandbMirror, given: dict[str, Any]) -> Any:
        released.wait()
        return start(mirror, given)

    def observe(batch: Any) -> None:
        poison.observe(batch)
        seen.append(batch.step)
        if seen.count(9) == 2 and batch.step == 12:
            released.set()

    monkeypatch.setattr(WandbMirror, "_start", start_late)
    began = time.monotonic()
    attempt(config, observe=observe, build_engine=poison.build)
    assert time.monotonic() - began < WITHOUT_WAITING_SECONDS
    left, newest_file = sorted(offline_files(config))
    assert wandb_files.alerts(left) == [
        ("Loss is not finite", "run tiny: the loss of step 11 is nan; the run goes back to an earlier checkpoint")
    ]
    assert lines_shown(left) == [(1, step) for step in range(1, 11)]
    assert lines_shown(newest_file) == [(1 if step <= 8 else 2, step) for step in range(1, 13)]
    assert_complete(config)


def test_wandb_run_of_the_attempt_before_is_finished_when_the_way_back_fails(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tracked_run(tmp_path, dataset)
    poison = Poison(math.nan)
    load = attempts.load_newest

    def load_once(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(attempts, "load_newest", fail)
        return load(*arguments, **named)

    def fail(*arguments: Any, **named: Any) -> Any:
        raise CheckpointError("nothing can be loaded")

    monkeypatch.setattr(attempts, "load_newest", load_once)
    with pytest.raises(CheckpointError, match="nothing can be loaded"):
        attempt(config, observe=poison.observe, build_engine=poison.build)
    assert wandb_files.exit_code(newest(config)) == 0
    assert lines_shown(newest(config)) == [(1, step) for step in range(1, 11)]


def test_training_ends_when_wandb_cannot_write(dataset: Path, tmp_path: Path) -> None:
    config = tracked_run(tmp_path, dataset)
    (begin(config) / "wandb").write_bytes(b"not a directory")
    attempt(config)
    assert len([row for row in record_of(config, "metrics.jsonl") if row["kind"] == "train"]) == 12


def test_alert_says_why_when_an_attempt_fails(dataset: Path, tmp_path: Path) -> None:
    config = tracked_run(tmp_path, dataset)

    def observe(batch: Any) -> None:
        if batch.step == 5:
            raise RuntimeError("the disk melted")

    with pytest.raises(RuntimeError, match="melted"):
        attempt(config, observe=observe)
    assert wandb_files.alerts(newest(config)) == [("Attempt failed", "run tiny: attempt 1 ended: the disk melted")]
    assert wandb_files.exit_code(newest(config)) == 1
    assert wandb_files.summary(newest(config))["status"] == "failed"


def test_alert_comes_once_when_many_losses_are_not_finite(dataset: Path, tmp_path: Path) -> None:
    config = tracked_run(tmp_path, dataset)
    directory = begin(config)
    log = StepLog(directory / "metrics.jsonl", attempt=1, after_step=0, clock=lambda: 1000.0)
    for step in range(1, 6):
        log.write("train", step, {"train/loss": 2.0 if step < 3 else math.nan})
    log.close()
    WandbMirror(OFFLINE, directory, attempt=1).close("stopped")
    assert wandb_files.alerts(newest(config)) == [
        ("Loss is not finite", "run tiny: the loss of step 3 is not a finite number")
    ]


def test_announcement_holds_record_and_alert_when_no_worker_is_left(dataset: Path, tmp_path: Path) -> None:
    config = tracked_run(tmp_path, dataset)
    attempt(config, stop_after=5, tracking=replace(OFFLINE, mode="disabled"))
    announce_failure(OFFLINE, tmp_path / "tiny", "workers were lost too often")
    assert_complete(config)
    assert wandb_files.alerts(newest(config)) == [("Run failed", "run tiny: workers were lost too often")]
    assert wandb_files.exit_code(newest(config)) == 1
    assert wandb_files.config(newest(config))["lineage"]["datasets"].keys() == {"emma"}
