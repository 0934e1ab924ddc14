"""Which checkpoints stay: by count, by step, by time."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import save
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.checkpoint import list_checkpoints, reject, steps_to_delete
from cluster.config import CheckpointConfig

POLICIES = st.builds(
    CheckpointConfig,
    every_steps=st.just(1),
    keep_last=st.integers(1, 4),
    keep_every_steps=st.none() | st.integers(1, 20),
    keep_every_minutes=st.none() | st.floats(0.5, 600.0),
)
SAVED = st.lists(st.tuples(st.integers(0, 200), st.floats(0.0, 1e5)), unique_by=lambda item: item[0])
"""Steps with their times; a clock may jump, so these need not rise together."""


def kept(saved: list[tuple[int, float]], policy: CheckpointConfig) -> list[tuple[int, float]]:
    deleted = set(steps_to_delete(saved, policy))
    return [item for item in saved if item[0] not in deleted]


@settings(max_examples=50)
@given(saved=SAVED, policy=POLICIES)
def test_retention_keeps_the_newest_and_every_permanent_step(
    saved: list[tuple[int, float]], policy: CheckpointConfig
) -> None:
    steps = {step for step, _ in kept(saved, policy)}
    assert steps >= set(sorted(step for step, _ in saved)[-policy.keep_last :])
    if policy.keep_every_steps is not None:
        assert steps >= {step for step, _ in saved if step % policy.keep_every_steps == 0}


@settings(max_examples=50)
@given(saved=SAVED, policy=POLICIES)
def test_retention_leaves_something_of_every_period_when_kept_by_time(
    saved: list[tuple[int, float]], policy: CheckpointConfig
) -> None:
    if policy.keep_every_minutes is not None:
        seconds = 60 * policy.keep_every_minutes
        assert {time // seconds for _, time in kept(saved, policy)} == {time // seconds for _, time in saved}


@settings(max_examples=50)
@given(saved=SAVED, policy=POLICIES)
def test_retention_deletes_all_but_the_newest_when_nothing_else_is_asked(
    saved: list[tuple[int, float]], policy: CheckpointConfig
) -> None:
    plain = CheckpointConfig(keep_last=policy.keep_last)
    assert steps_to_delete(saved, plain) == sorted(step for step, _ in saved)[: -policy.keep_last]


@settings(max_examples=50)
@given(saved=SAVED, policy=POLICIES)
def test_retention_deletes_nothing_more_when_applied_again(
    saved: list[tuple[int, float]], policy: CheckpointConfig
) -> None:
    assert steps_to_delete(kept(saved, policy), policy) == []


@settings(max_examples=50)
@given(saved=SAVED, policy=POLICIES)
def test_retention_ends_with_the_same_when_applied_after_every_save(
    saved: list[tuple[int, float]], policy: CheckpointConfig
) -> None:
    present: list[tuple[int, float]] = []
    for item in sorted(saved):
        present = kept([*present, item], policy)
    assert present == kept(sorted(saved), policy)


@settings(max_examples=50)
@given(saved=SAVED, policy=POLICIES, more=st.integers(1, 3))
def test_retention_keeps_no_less_when_more_are_asked_for(
    saved: list[tuple[int, float]], policy: CheckpointConfig, more: int
) -> None:
    wider = CheckpointConfig(
        every_steps=1,
        keep_last=policy.keep_last + more,
        keep_every_steps=policy.keep_every_steps,
        keep_every_minutes=policy.keep_every_minutes,
    )
    assert set(kept(saved, wider)) >= set(kept(saved, policy))


def test_first_checkpoint_of_an_hour_stays_when_kept_by_the_hour() -> None:
    saved = [(step, 3600.0 * 10 + 20 * 60 * step) for step in range(1, 10)]  # 10:20, 10:40, 11:00, ...
    policy = CheckpointConfig(keep_last=1, keep_every_minutes=60)
    assert [step for step, _ in kept(saved, policy)] == [1, 3, 6, 9]


def test_permanent_checkpoints_stay_on_disk_when_old(tmp_path: Path) -> None:
    policy = CheckpointConfig(every_steps=1, keep_last=1, keep_every_steps=3)
    for step in range(1, 8):
        save(tmp_path, step, policy=policy)
    assert [info.step for info in list_checkpoints(tmp_path)] == [3, 6, 7]


def test_rejected_checkpoint_is_deleted_when_older_than_the_newest_although_its_step_is_permanent(
    tmp_path: Path,
) -> None:
    policy = CheckpointConfig(every_steps=1, keep_last=1, keep_every_steps=2)
    for step in (2, 4):
        save(tmp_path, step, policy=policy)
    reject(list_checkpoints(tmp_path)[-1], "a byte was flipped", kind="damage")
    save(tmp_path, 5, policy=policy)
    assert [info.step for info in list_checkpoints(tmp_path)] == [2, 5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_every_steps": 150}, "Make it a multiple of every_steps"),
        ({"keep_every_minutes": 0.0}, "must be above 0"),
        ({"local_copy": "copies"}, "Write an absolute path"),
    ],
)
def test_policy_is_refused_when_it_could_not_be_kept(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckpointConfig(**fields)  # type: ignore[arg-type]
