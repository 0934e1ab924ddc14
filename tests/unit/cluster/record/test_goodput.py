"""Goodput over histories written by hand, and over random ones."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.record.goodput import PART_WORDS, Goodput, TimeParts, goodput_line, measure_goodput, read_goodput

T0 = 1_790_000_000.0


def _spent(
    *,
    training: float | None = None,
    data_wait: float | None = None,
    checkpoint: float | None = None,
    evaluation: float | None = None,
    compilation: float | None = None,
) -> dict[str, Any]:
    said = {
        "training": training,
        "data_wait": data_wait,
        "checkpoint": checkpoint,
        "evaluation": evaluation,
        "compilation": compilation,
    }
    return {f"time/{name}_seconds": value for name, value in said.items() if value is not None}


def _row(step: int, at: float, *, attempt: int = 1, **spent: float | None) -> dict[str, Any]:
    return {"kind": "train", "step": step, "time_unix_seconds": T0 + at, "attempt": attempt, **_spent(**spent)}


def _event(name: str, at: float, **details: Any) -> dict[str, Any]:
    return {"event": name, "time_unix_seconds": T0 + at, **details}


def _attempt(goodput: Goodput, number: int) -> TimeParts:
    return next(one.parts for one in goodput.attempts if one.attempt == number)


def test_goodput_divides_an_attempt_by_its_rows() -> None:
    goodput = measure_goodput(
        [
            _row(10, 20, training=6, data_wait=1, checkpoint=0.5, evaluation=2),
            {"kind": "eval", "name": "austen", "step": 10, "time_unix_seconds": T0 + 19, "attempt": 1},
            _row(20, 30, training=9),
        ],
        [],
        [_event("started", 10, attempt=1), _event("checkpoint_saved", 25, step=20), _event("finished", 32)],
        created_unix_seconds=T0,
    )
    assert goodput.parts == TimeParts(
        training=15, data_wait=1, checkpoint=0.5, evaluation=2, start_up=10, other=0.5 + 1 + 2
    )
    assert goodput.wall_seconds == 32
    assert goodput.fraction == 15 / 32


def test_goodput_counts_what_the_end_of_an_attempt_says_of_the_time_after_its_last_row() -> None:
    goodput = measure_goodput(
        [_row(10, 20, training=10)],
        [],
        [_event("started", 10, attempt=1), _event("finished", 29, step=10, **_spent(checkpoint=2, evaluation=4))],
    )
    assert goodput.parts == TimeParts(training=10, checkpoint=2, evaluation=4, other=3)


def test_goodput_tells_compilation_apart_and_takes_older_lines_to_have_none() -> None:
    goodput = measure_goodput(
        [_row(1, 40, training=1, compilation=25), _row(10, 50, training=10)],
        [],
        [_event("started", 10, attempt=1), _event("finished", 58, step=10, **_spent(evaluation=2, compilation=5))],
        created_unix_seconds=T0,
    )
    assert goodput.parts == TimeParts(training=11, evaluation=2, compilation=30, start_up=10, other=4 + 1)
    assert goodput.fraction == 11 / 58
    assert "evaluation 3.4 %, compilation 51.7 %, start-up" in goodput_line(goodput)


def test_goodput_counts_compilation_of_discarded_steps_as_redone() -> None:
    goodput = measure_goodput(
        [_row(10, 90, attempt=2, training=12, compilation=8)],
        [_row(10, 31, training=10, compilation=11)],
        [_event("started", 10, attempt=1), _event("worker_lost", 31), _event("resumed", 70, attempt=2)],
    )
    assert _attempt(goodput, 1) == TimeParts(redone=21, lost=39)
    assert _attempt(goodput, 2) == TimeParts(training=12, compilation=8)


@pytest.mark.parametrize("end", ["stopped", "regrouped"])
def test_goodput_counts_steps_that_only_the_end_tells_when_the_next_attempt_goes_on_from_them(end: str) -> None:
    goodput = measure_goodput(
        [_row(10, 10, training=10), _row(20, 25, attempt=2, training=5)],
        [],
        [
            _event("started", 0, attempt=1),
            _event(end, 16, step=14, **_spent(training=4, data_wait=0.5, checkpoint=1)),
            _event("resumed", 20, attempt=2, step=14, start_up_seconds=4),
        ],
    )
    assert _attempt(goodput, 1) == TimeParts(training=14, data_wait=0.5, checkpoint=1, other=0.5)
    assert goodput.parts.training == 19


def test_goodput_counts_steps_that_only_the_end_tells_as_redone_when_the_next_attempt_begins_before_them() -> None:
    goodput = measure_goodput(
        [_row(10, 10, training=10), _row(20, 30, attempt=2, training=10)],
        [],
        [
            _event("started", 0, attempt=1, step=0),
            _event("stopped", 16, step=14, **_spent(training=4, checkpoint=1)),
            _event("resumed", 20, attempt=2, step=10, start_up_seconds=4),  # the checkpoint of step 14 was damaged
        ],
    )
    assert _attempt(goodput, 1) == TimeParts(training=10, redone=5, other=1)


def test_goodput_counts_discarded_steps_as_redone_and_the_way_back_as_lost_when_a_worker_dies() -> None:
    goodput = measure_goodput(
        [_row(10, 20, training=10), _row(20, 90, attempt=2, training=12)],
        [_row(20, 31, training=10, evaluation=1)],
        [
            _event("started", 10, attempt=1),
            _event("checkpoint_saved", 21, step=10),
            _event("worker_lost", 35),
            _event("resumed", 75, attempt=2),
        ],
    )
    assert _attempt(goodput, 1) == TimeParts(training=10, redone=11, lost=4 + 40)
    assert _attempt(goodput, 2) == TimeParts(training=12, other=3)
    assert goodput.fraction == 22 / 80


def test_goodput_tells_starting_again_from_waiting_when_the_attempt_says_how_long_it_started() -> None:
    goodput = measure_goodput(
        [_row(10, 20, training=10)],
        [],
        [
            _event("started", 10, attempt=1),
            _event("worker_lost", 20),
            _event("resumed", 60, attempt=2, start_up_seconds=15.0),
        ],
    )
    assert _attempt(goodput, 1) == TimeParts(training=10, lost=25)
    assert _attempt(goodput, 2) == TimeParts(start_up=15)


def test_goodput_counts_the_wait_as_lost_when_the_driver_was_killed_and_could_say_nothing() -> None:
    events = [_event("started", 0, attempt=1), _event("resumed", 100, attempt=2)]
    goodput = measure_goodput([_row(10, 10, training=10)], [], events)
    assert _attempt(goodput, 1) == TimeParts(training=10, lost=90)


@pytest.mark.parametrize("end", ["stopped", "finished"])
def test_goodput_leaves_out_a_pause_that_a_person_made(end: str) -> None:
    goodput = measure_goodput(
        [_row(10, 10, training=10), _row(20, 100_020, attempt=2, training=10)],
        [],
        [
            _event("started", 0, attempt=1),
            _event(end, 11, step=10),
            _event("resumed", 100_010, attempt=2, start_up_seconds=9.0),
        ],
    )
    assert goodput.paused_seconds == 100_010 - 9 - 11
    assert goodput.wall_seconds == 11 + 9 + 10
    assert goodput.fraction == 20 / 30


def test_goodput_counts_steps_and_the_way_to_a_rollback_as_redone_when_the_run_rolls_back() -> None:
    goodput = measure_goodput(
        [_row(10, 10, training=10), _row(20, 40, attempt=2, training=8)],
        [_row(20, 20, training=10)],
        [
            _event("started", 0, attempt=1),
            _event("rolled_back", 25, step=22, to_step=10, attempt=1),
            _event("resumed", 28, attempt=2),
        ],
    )
    assert _attempt(goodput, 1) == TimeParts(training=10, redone=15)
    assert _attempt(goodput, 2) == TimeParts(training=8, start_up=3, other=4)


def test_goodput_counts_a_planned_change_of_workers_as_start_up() -> None:
    goodput = measure_goodput(
        [_row(10, 10, training=10)],
        [],
        [_event("started", 0, attempt=1), _event("regrouped", 11, step=10), _event("resumed", 20, attempt=2)],
    )
    assert _attempt(goodput, 1) == TimeParts(training=10, other=1)
    assert _attempt(goodput, 2) == TimeParts(start_up=9)


def test_goodput_counts_steps_after_the_last_checkpoint_as_redone_when_the_run_lies_dead() -> None:
    rows = [_row(10, 10, training=10), _row(20, 20, training=10)]
    events = [_event("started", 0, attempt=1), _event("checkpoint_saved", 11, step=10), _event("failed", 23)]
    assert measure_goodput(rows, [], events).parts == TimeParts(training=10, redone=10, lost=3)
    assert measure_goodput(rows, [], events[:2]).parts == TimeParts(training=20)


def test_goodput_is_not_known_when_rows_were_written_before_times_were_recorded() -> None:
    goodput = measure_goodput([_row(10, 10), _row(20, 20)], [], [_event("started", 0, attempt=1)])
    assert goodput.parts == TimeParts(other=20)
    assert goodput.fraction is None
    assert goodput_line(goodput) == "goodput n/a of 0:00:20: no step of the record says what its time was spent on"


def test_goodput_keeps_rows_within_their_interval_when_clocks_disagree() -> None:
    rows = [_row(10, 10, training=15, data_wait=5), _row(20, 12, training=-1.0)]
    parts = measure_goodput(rows, [], [_event("started", 0, attempt=1)]).parts
    assert parts.training == pytest.approx(7.5, abs=1e-5)
    assert parts.data_wait == pytest.approx(2.5, abs=1e-5)
    assert parts.total == 12


@pytest.mark.parametrize("value", [None, "yesterday", math.nan, math.inf, 1e300, 10**400, True, [1]])
def test_goodput_passes_over_lines_when_they_are_damaged(value: Any) -> None:
    row = _row(10, 10, training=10)
    rows = [row, {**row, "time_unix_seconds": value}, {**row, "time/training_seconds": value, "attempt": value}]
    events = [_event("started", 0, attempt=1), {"event": "worker_lost", "time_unix_seconds": value}, {"event": value}]
    assert measure_goodput(rows, [], events, created_unix_seconds=value).parts == TimeParts(training=10)


def test_goodput_of_a_branch_begins_with_its_own_start_when_it_lay_untouched(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"created_unix_seconds": T0 - 9e5, "parent": {"step": 10}}))
    started = _event("started", 5, attempt=1, start_up_seconds=4.0)
    (tmp_path / "events.jsonl").write_text(json.dumps(started) + "\n" + json.dumps(_event("failed", 6)) + "\n")
    assert read_goodput(tmp_path).parts == TimeParts(start_up=4, lost=1)


def test_goodput_of_nothing_is_nothing() -> None:
    goodput = measure_goodput([], [], [], created_unix_seconds=T0)
    assert (goodput.wall_seconds, goodput.fraction, goodput.attempts) == (0, None, ())


def test_goodput_line_names_the_parts_that_took_time() -> None:
    goodput = measure_goodput(
        [_row(10, 7510, training=7000.0, evaluation=300.0)],
        [],
        [_event("started", 10, attempt=1)],
        created_unix_seconds=T0,
    )
    assert goodput_line(goodput) == (
        "goodput 93.2 % of 2:05:10 (training 93.2 %, evaluation 4.0 %, start-up 0.1 %, other 2.7 %)"
    )


_MOMENTS = st.floats(min_value=0, max_value=1e6)
_SPENT = st.none() | st.floats(min_value=0, max_value=1e4)
_ROWS = st.lists(
    st.builds(
        _row,
        st.integers(1, 50),
        _MOMENTS,
        attempt=st.integers(1, 5),
        training=_SPENT,
        data_wait=_SPENT,
        checkpoint=_SPENT,
        evaluation=_SPENT,
        compilation=_SPENT,
    ),
    max_size=12,
)
_NAMES = (
    "started",
    "resumed",
    "worker_lost",
    "driver_lost",
    "failed",
    "stopped",
    "finished",
    "rolled_back",
    "regrouped",
    "checkpoint_saved",
    "anomaly",
)
_EVENTS = st.lists(
    st.builds(
        lambda name, at, spent, **details: _event(name, at, **details, **spent),
        st.sampled_from(_NAMES),
        _MOMENTS,
        st.builds(_spent, training=_SPENT, data_wait=_SPENT, checkpoint=_SPENT, evaluation=_SPENT, compilation=_SPENT),
        attempt=st.none() | st.integers(1, 5),
        step=st.integers(1, 50),
        to_step=st.integers(0, 50),
        start_up_seconds=_SPENT,
    ),
    max_size=12,
)


@settings(max_examples=50)
@given(rows=_ROWS, discarded=_ROWS, events=_EVENTS, created=_MOMENTS)
def test_parts_and_pauses_add_up_to_the_wall_time_exactly_whatever_happened(
    rows: list[dict[str, Any]], discarded: list[dict[str, Any]], events: list[dict[str, Any]], created: float
) -> None:
    goodput = measure_goodput(rows, discarded, events, created_unix_seconds=T0 + created)
    told = [*rows, *discarded, *(event for event in events if event["event"] not in ("checkpoint_saved", "anomaly"))]
    moments = [line["time_unix_seconds"] for line in told]
    first = min([*moments, T0 + created])
    span = (round(max(moments, default=first) * 2**20) - round(first * 2**20)) / 2**20 if moments else 0
    assert goodput.wall_seconds + goodput.paused_seconds == span
    assert sum(sum(astuple(one.parts)) for one in goodput.attempts) == goodput.wall_seconds
    assert all(seconds >= 0 for one in goodput.attempts for seconds in astuple(one.parts))
    assert goodput.fraction is None or 0 <= goodput.fraction <= 1


def test_part_words_name_every_part() -> None:
    assert list(TimeParts.__dataclass_fields__) == list(PART_WORDS)


def test_read_goodput_reads_a_run_directory_with_a_torn_tail(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"created_unix_seconds": T0}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(_row(10, 20, training=10)) + '\n{"kind": "tr')
    (tmp_path / "events.jsonl").write_text(json.dumps(_event("started", 5, attempt=1)) + "\n")
    assert read_goodput(tmp_path).parts == TimeParts(training=10, start_up=5, other=5)


def test_goodput_needs_neither_torch_nor_ray() -> None:
    heavy = "('torch', 'ray', 'deepspeed')"
    code = f"import sys, cluster.record.goodput; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
