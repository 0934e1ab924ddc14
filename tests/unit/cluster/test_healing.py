from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import TrainingFailedError
from cluster.faults.config import HealingConfig
from cluster.healing import (
    WITHHELD_IN_A_ROW,
    Anomaly,
    Decisions,
    HealthWatch,
    Rollback,
    check_rollbacks,
    first_skipped_step,
    of_another_history,
)
from data_pipeline.skip_ledger import SkipLedger

CALM = [3.0, 3.1, 2.9, 3.05, 2.95, 3.02, 2.98, 3.0]


def watch(**settings: object) -> HealthWatch:
    config = HealingConfig(spike_window_steps=8, **{"loss_spike": "rollback", **settings})  # type: ignore[arg-type]
    return HealthWatch(config, memory={"losses": CALM}, run="austen")


def alarm(step: int = 50) -> Anomaly:
    return Anomaly(step=step, kind="loss_spike", action="rollback", loss=30.0, score=90.0)


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (3.0, None),
        (3.3, None),
        (30.0, "loss_spike"),
        (0.1, None),
        (math.nan, "non_finite_loss"),
        (math.inf, "non_finite_loss"),
        (-math.inf, "non_finite_loss"),
    ],
)
def test_loss_is_judged_by_its_window(loss: float, kind: str | None) -> None:
    anomaly = watch().judge_loss(9, loss)
    assert (anomaly and anomaly.kind) == kind


def test_score_is_the_robust_z_score_of_the_loss() -> None:
    anomaly = watch().judge_loss(9, 30.0)
    assert anomaly is not None
    deviation = 1.4826 * 0.035  # median of |0, .1, .1, .05, .05, .02, .02, 0| is between 0.02 and 0.05
    assert anomaly.score == pytest.approx((30.0 - 3.0) / deviation)


def test_nothing_is_a_spike_until_half_of_the_window_is_there() -> None:
    young = HealthWatch(HealingConfig(spike_window_steps=8, loss_spike="rollback"))
    assert [young.judge_loss(step, loss) for step, loss in enumerate([9.0, 90.0, 900.0, 8.0], start=1)] == [None] * 4
    assert young.judge_loss(5, 9e5) is not None


def test_flat_curve_has_no_spikes_when_it_moves_by_rounding() -> None:
    flat = HealthWatch(HealingConfig(spike_window_steps=4, loss_spike="rollback"), memory={"losses": [2.0] * 4})
    assert flat.judge_loss(5, 2.0001) is None


def test_level_that_lasts_becomes_normal() -> None:
    warned = watch(loss_spike="warn")
    anomalies = [warned.judge_loss(step, 6.0 + step % 3 / 10) for step in range(9, 30)]
    assert anomalies[0] is not None
    assert anomalies[-10:] == [None] * 10


def test_decision_made_before_is_made_again_whatever_the_loss() -> None:
    config = HealingConfig(spike_window_steps=8)
    anomaly = HealthWatch(config, memory={"losses": CALM[:2]}, withheld=[9]).judge_loss(9, 3.0)
    assert anomaly is not None
    assert (anomaly.action, anomaly.kind) == ("skip", "decided_before")
    assert str(anomaly) == "the update of step 9 was left out when the step was first made"


@pytest.mark.parametrize("kind", ["loss", "gradients"])
def test_run_is_given_up_when_update_after_update_is_left_out(kind: str) -> None:
    skipping = watch(non_finite="skip")

    def bad_step(step: int) -> None:
        if kind == "loss":
            skipping.judge_loss(step, math.nan)
        else:
            skipping.judge_loss(step, 3.0)
            skipping.judge_gradients(step, 3.0, math.inf)

    for step in range(WITHHELD_IN_A_ROW - 1):
        bad_step(step)
    skipping.judge_loss(50, 3.0)
    assert skipping.judge_gradients(50, 3.0, 1.0) is None  # one good step, and the count begins anew
    for step in range(100, 100 + WITHHELD_IN_A_ROW - 1):
        bad_step(step)
    with pytest.raises(TrainingFailedError, match=r"run austen: .* of step 200 .*Branch from one of them with a lower"):
        bad_step(200)


@given(losses=st.lists(st.floats(0.1, 100.0), max_size=40), cut=st.integers(0, 40))
def test_judgements_are_the_same_when_the_window_is_restored(losses: list[float], cut: int) -> None:
    config = HealingConfig(spike_window_steps=8, loss_spike="warn", spike_score=4.0)
    whole = HealthWatch(config)
    expected = [whole.judge_loss(step, loss) for step, loss in enumerate(losses)]
    before = HealthWatch(config)
    for step, loss in enumerate(losses[:cut]):
        before.judge_loss(step, loss)
    after = HealthWatch(config, memory=before.memory())
    assert [after.judge_loss(cut + step, loss) for step, loss in enumerate(losses[cut:])] == expected[cut:]


def test_updates_left_out_in_a_row_are_counted_on_when_the_run_is_resumed() -> None:
    before = watch(non_finite="skip")
    for step in range(WITHHELD_IN_A_ROW - 1):
        before.judge_loss(step, math.nan)
    after = HealthWatch(HealingConfig(non_finite="skip"), memory=before.memory())
    with pytest.raises(TrainingFailedError, match="one after the other"):
        after.judge_loss(50, math.nan)


def test_run_is_given_up_when_update_after_update_is_left_out_and_only_told() -> None:
    warned = watch(non_finite="warn")
    for step in range(WITHHELD_IN_A_ROW - 1):
        warned.judge_loss(step, math.nan)
    with pytest.raises(TrainingFailedError, match="one after the other"):
        warned.judge_loss(50, math.nan)


def test_step_is_told_once_when_loss_and_gradients_are_not_finite() -> None:
    warned = watch(non_finite="warn")
    assert warned.judge_loss(9, math.nan) is not None
    assert warned.judge_gradients(9, math.nan, math.nan) is None


@pytest.mark.parametrize(
    ("known", "other"),
    [
        (Decisions(skips=SkipLedger().add(60, 66), withheld=(4,)), False),
        (Decisions(skips=SkipLedger().add(60, 66), withheld=()), True),
        (Decisions(withheld=(4,)), True),
    ],
)
def test_checkpoint_is_of_another_history_when_it_lacks_what_was_decided_before_it(
    known: Decisions, other: bool
) -> None:
    decided = Decisions(skips=SkipLedger().add(60, 66).add(90, 96), withheld=(4, 20))
    assert of_another_history(decided, known, step=12, position=78) == other


def test_decisions_are_what_they_were_when_read_back() -> None:
    decisions = Decisions(
        skips=SkipLedger().add(60, 66), withheld=(4, 9), rollbacks=(Rollback(step=11, to_step=8, start=60, stop=66),)
    )
    assert Decisions.of({"healing": decisions.to_json()}, HealingConfig()) == decisions


def test_decisions_begin_with_the_sequences_that_the_configuration_leaves_out() -> None:
    config = HealingConfig(skip_sequences=((10, 20), (4, 6)))
    assert Decisions.of({}, config).skips.intervals == ((4, 6), (10, 20))


def test_rollbacks_are_refused_when_there_were_enough_near_by() -> None:
    near = tuple(Rollback(step=step, to_step=40, start=0, stop=1) for step in (45, 48, 52))
    config = HealingConfig(max_rollbacks=3)
    far = Decisions(rollbacks=(*near[:2], Rollback(step=200, to_step=190, start=0, stop=1)))
    check_rollbacks(far, alarm(), config=config, every_steps=10)
    with pytest.raises(
        TrainingFailedError, match=r"rolled back 3 times near there already \(alarms at steps 45, 48, 52"
    ):
        check_rollbacks(Decisions(rollbacks=near), alarm(), config=config, every_steps=10)


@pytest.mark.parametrize(("batches", "to_step", "first"), [(1, 40, 50), (5, 40, 46), (100, 40, 41), (1, 49, 50)])
def test_batches_left_out_end_with_the_alarm_and_begin_after_the_checkpoint(
    batches: int, to_step: int, first: int
) -> None:
    assert first_skipped_step(50, to_step, HealingConfig(rollback_batches=batches)) == first
