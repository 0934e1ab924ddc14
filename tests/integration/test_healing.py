"""Runs whose numbers go wrong, without Ray: what healing does, and that the curve after it is the right one."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from attempts import attempt_alone, die, kill_attempt, record_of
from gloo import run_ranks
from poison import Poison
from tiny import SilentLink, begin, no_tracking, tiny_run

from cluster.attempt import EngineRequest, Surroundings, run_attempt
from cluster.checkpoint import list_checkpoints
from cluster.config import RunConfig
from cluster.engines.builders import deepspeed_engine
from cluster.engines.protocol import Engine
from cluster.errors import TrainingFailedError
from cluster.faults.config import HealingConfig
from cluster.healer import Healer
from cluster.record.logs import read_lines
from cluster.run_directory import RunDirectory
from cluster.topology import Topology
from data_pipeline.batch_sizes import BatchSizeStage

BAD_STEP = 11  # global batch 6: sequences 60 to 65; the last checkpoint before it is that of step 8
BAD_SEQUENCES = ((60, 66),)
NEVER = -1


def healed_run(storage: Path, dataset: Path, **healing: Any) -> RunConfig:
    defaults: dict[str, Any] = {"loss_spike": "rollback", "spike_window_steps": 8}
    return replace(tiny_run(storage, dataset, train__max_steps=16), healing=HealingConfig(**{**defaults, **healing}))


def train_poisoned(config: RunConfig, poison: Poison) -> SilentLink:
    return attempt_alone(config, observe=poison.observe, build_engine=poison.build)


def healing_events(link: SilentLink) -> list[dict[str, Any]]:
    names = ("anomaly", "update_skipped", "rolled_back", "samples_skipped")
    return [
        {key: value for key, value in event.items() if key not in ("type", "attempt", "reason", "score", "loss")}
        for event in link.events()
        if event["event"] in names
    ]


@pytest.fixture(scope="module")
def forewarned(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run told from the start to leave out the sequences that healing would leave out."""
    config = healed_run(tmp_path_factory.mktemp("forewarned"), dataset, skip_sequences=BAD_SEQUENCES)
    attempt_alone(config)
    return config


@pytest.mark.parametrize(("factor", "kind"), [(math.nan, "non_finite_loss"), (10.0, "loss_spike")])
def test_curve_is_that_of_a_run_without_the_sequences_when_rolled_back(
    factor: float, kind: str, forewarned: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = healed_run(tmp_path, dataset)
    link = train_poisoned(config, Poison(factor))
    assert record_of(config) == record_of(forewarned)
    assert healing_events(link) == [
        {"event": "anomaly", "step": BAD_STEP, "kind": kind, "action": "rollback"},
        {"event": "rolled_back", "step": BAD_STEP, "to_step": 8},
        {"event": "samples_skipped", "step": BAD_STEP, "start": 60, "stop": 66},
    ]
    resumed = [event for event in link.events() if event["event"] == "resumed"]
    assert [event["from_step"] for event in resumed] == [8]


def test_curve_is_that_of_a_run_without_the_sequences_when_rolled_back_while_batches_grow(
    dataset: Path, tmp_path: Path
) -> None:
    stages = (BatchSizeStage(until_step=8, global_batch_size=3), BatchSizeStage(until_step=12, global_batch_size=4))
    curves = []
    for name, skip_sequences in (("warned", ((32, 36),)), ("healed", ())):
        config = healed_run(tmp_path / name, dataset, skip_sequences=skip_sequences)
        config = replace(config, train=replace(config.train, batch_size_warmup=stages))
        link = train_poisoned(config, Poison(math.nan, (34,)))  # step 11 takes the sequences 32 to 35
        curves.append(record_of(config))
    assert curves[0] == curves[1]
    assert [event["event"] for event in healing_events(link)] == ["anomaly", "rolled_back", "samples_skipped"]
    assert healing_events(link)[-1] == {"event": "samples_skipped", "step": BAD_STEP, "start": 32, "stop": 36}


def test_curve_is_the_same_when_killed_before_it_went_back(
    forewarned: RunConfig, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_back = Healer.roll_back

    def decide_and_die(healer: Healer) -> None:
        roll_back(healer)
        die()

    config = healed_run(tmp_path, dataset)
    poison = Poison(math.nan)
    with monkeypatch.context() as patched:
        patched.setattr(Healer, "roll_back", decide_and_die)
        kill_attempt(config, NEVER, observe=poison.observe, build_engine=poison.build)
    attempt_alone(config)  # without the poison: the decision must have been kept
    assert record_of(config) == record_of(forewarned)


@pytest.mark.parametrize(("step", "time"), [(10, 2), (14, 1)])
def test_curve_is_the_same_when_killed_after_a_rollback(
    step: int, time: int, forewarned: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    config = healed_run(tmp_path, dataset)
    poison = Poison(math.nan)
    seen: list[int] = []

    def observe(batch: Any) -> None:
        poison.observe(batch)
        seen.append(batch.step)
        if seen.count(step) == time:
            die()

    kill_attempt(config, NEVER, observe=observe, build_engine=poison.build)
    attempt_alone(config)
    assert record_of(config) == record_of(forewarned)


def test_checkpoint_in_flight_is_published_before_the_rollback_when_the_next_batch_is_bad(
    dataset: Path, tmp_path: Path
) -> None:
    config = healed_run(tmp_path, dataset)
    link = train_poisoned(config, Poison(math.nan, (50,)))  # step 9, right after the checkpoint of step 8
    (rolled_back,) = [event for event in link.events() if event["event"] == "rolled_back"]
    assert rolled_back["to_step"] == 8
    assert [info.problem for info in list_checkpoints(tmp_path / "tiny")] == [None, None, None]


def test_suspect_checkpoint_is_left_when_other_batches_give_the_alarm_too(dataset: Path, tmp_path: Path) -> None:
    config = healed_run(tmp_path, dataset)
    link = train_poisoned(config, Poison(math.nan, (50, 54)))  # step 9, and the batch put in its place
    rolled_back = [event["to_step"] for event in link.events() if event["event"] == "rolled_back"]
    assert rolled_back == [8, 4]
    (rejected,) = [event for event in link.events() if event["event"] == "checkpoint_rejected"]
    assert rejected["step"] == 8
    skipped = [(event["start"], event["stop"]) for event in link.events() if event["event"] == "samples_skipped"]
    assert skipped == [(48, 54), (42, 60)]  # step 8's batch too: with it the state would only come to be again
    assert "a second time" in rejected["reason"]


def test_run_ends_with_the_remedy_when_rollbacks_do_not_help(dataset: Path, tmp_path: Path) -> None:
    config = healed_run(tmp_path, dataset, max_rollbacks=2)
    with pytest.raises(TrainingFailedError, match=r"rolled back 2 times near there already.*healing.rollback_batches"):
        train_poisoned(config, Poison(math.nan, tuple(range(60, 200))))


def test_update_is_left_out_and_the_curve_goes_on_when_a_batch_is_skipped(dataset: Path, tmp_path: Path) -> None:
    config = healed_run(tmp_path, dataset, non_finite="skip")
    link = train_poisoned(config, Poison(math.nan))
    assert healing_events(link) == [
        {"event": "anomaly", "step": BAD_STEP, "kind": "non_finite_loss", "action": "skip"},
        {"event": "update_skipped", "step": BAD_STEP},
    ]
    rows = [row for row in read_lines(tmp_path / "tiny" / "metrics.jsonl") if row["kind"] == "train"]
    bad = rows[BAD_STEP - 1]
    assert (bad["train/loss"], bad["train/grad_norm"]) == (None, None)
    assert all(math.isfinite(row["train/loss"]) for row in rows if row["step"] != BAD_STEP)


def test_loss_that_is_not_finite_never_reaches_the_weights_when_healing_warns_and_the_gradients_are_finite(
    dataset: Path, tmp_path: Path
) -> None:
    config = healed_run(tmp_path / "a", dataset, non_finite="warn")
    link = train_poisoned(config, Poison(math.nan, what="value"))
    assert healing_events(link) == [
        {"event": "anomaly", "step": BAD_STEP, "kind": "non_finite_loss", "action": "warn"},
        {"event": "update_skipped", "step": BAD_STEP},
    ]
    skipped = healed_run(tmp_path / "b", dataset, non_finite="skip")
    train_poisoned(skipped, Poison(math.nan))
    assert record_of(config) == record_of(skipped)


def test_skipped_update_is_skipped_again_when_resumed_from_before_it(dataset: Path, tmp_path: Path) -> None:
    undisturbed = healed_run(tmp_path / "a", dataset, loss_spike="skip")
    train_poisoned(undisturbed, Poison(10.0))
    config = healed_run(tmp_path / "b", dataset, loss_spike="skip")
    poison = Poison(10.0)
    kill_attempt(config, 12, observe=poison.observe, build_engine=poison.build)
    link = train_poisoned(config, Poison(10.0))
    assert next(event for event in link.events() if event["event"] == "resumed")["from_step"] == 8
    assert record_of(config) == record_of(undisturbed)


@pytest.mark.parametrize("what", ["loss", "gradients"])
@pytest.mark.parametrize("action", ["skip", "warn"])
def test_run_is_the_same_when_resumed_before_a_skipped_update_that_is_sound_this_time(
    action: Literal["skip", "warn"], what: str, dataset: Path, tmp_path: Path
) -> None:
    config = healed_run(tmp_path, dataset, non_finite=action, spike_window_steps=128)
    kill_attempt(config, 12, observe=(poison := Poison(math.nan, what=what)).observe, build_engine=poison.build)
    attempt_alone(config)  # the glitch does not come back, the decision does
    undisturbed = healed_run(tmp_path / "b", dataset, non_finite="skip", spike_window_steps=128)
    train_poisoned(undisturbed, Poison(math.nan, what="gradients"))
    after = [row for row in record_of(config) if row["step"] > BAD_STEP]
    assert after == [row for row in record_of(undisturbed) if row["step"] > BAD_STEP]


def test_checkpoint_of_an_abandoned_course_is_passed_over_when_it_comes_back(
    forewarned: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    course = healed_run(tmp_path / "course", dataset)
    attempt_alone(course)
    config = healed_run(tmp_path, dataset)
    poison = Poison(math.nan)
    kill_attempt(config, 15, observe=poison.observe, build_engine=poison.build)
    checkpoints = tmp_path / "tiny" / "checkpoints"
    shutil.copytree(tmp_path / "course" / "tiny" / "checkpoints" / "step-00000016", checkpoints / "step-00000016")
    link = attempt_alone(config)
    (rejected,) = [event for event in link.events() if event["event"] == "checkpoint_rejected"]
    assert "goes on with other batches" in rejected["reason"]
    assert record_of(config) == record_of(forewarned)


def test_rollback_is_told_by_the_next_attempt_when_a_kill_kept_it_from_the_record(
    dataset: Path, tmp_path: Path
) -> None:
    config = healed_run(tmp_path, dataset)
    poison = Poison(math.nan)
    kill_attempt(config, 14, observe=poison.observe, build_engine=poison.build)
    told = [event["event"] for event in attempt_alone(config).events()]
    assert told[:3] == ["resumed", "rolled_back", "samples_skipped"]


def test_spike_is_only_told_when_healing_warns(dataset: Path, tmp_path: Path) -> None:
    config = healed_run(tmp_path, dataset, loss_spike="warn")
    link = train_poisoned(config, Poison(10.0))
    assert healing_events(link) == [{"event": "anomaly", "step": BAD_STEP, "kind": "loss_spike", "action": "warn"}]


def test_beginning_is_gone_back_to_when_there_is_no_checkpoint_yet(dataset: Path, tmp_path: Path) -> None:
    config = healed_run(tmp_path / "a", dataset)
    link = train_poisoned(config, Poison(math.nan, (7,)))  # step 2
    assert [event["to_step"] for event in link.events() if event["event"] == "rolled_back"] == [0]
    forewarned = healed_run(tmp_path / "b", dataset, skip_sequences=((6, 12),))
    attempt_alone(forewarned)
    assert record_of(config) == record_of(forewarned)


def attempt_on_ranks(topology: Topology, config: RunConfig, factor: float) -> None:
    poison = Poison(factor)

    def build(request: EngineRequest) -> Engine:
        return poison.applied_to(deepspeed_engine(request))

    surroundings = Surroundings(
        build_engine=build,
        zero_stage=config.zero.stage,
        link=SilentLink(),
        tracking=no_tracking(),
        observe=poison.observe,
    )
    run_attempt(config, topology, surroundings)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [math.nan, 10.0])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_agree_and_the_curve_is_right_when_rolled_back(
    stage: int, factor: float, dataset: Path, tmp_path: Path
) -> None:
    config = healed_run(tmp_path / "a", dataset)
    config = replace(config, zero=replace(config.zero, stage=stage))
    begin(config)
    run_ranks(attempt_on_ranks, 2, config, factor)
    forewarned = replace(
        config, storage=str(tmp_path / "b"), healing=replace(config.healing, skip_sequences=BAD_SEQUENCES)
    )
    begin(forewarned)
    run_ranks(attempt_on_ranks, 2, forewarned, 1.0)
    assert record_of(config) == record_of(forewarned)
    assert len(RunDirectory(tmp_path / "a" / "tiny").facts()["healing"]["rollbacks"]) == 1
