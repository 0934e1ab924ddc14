"""The section on time: its figures are those of the record, for one run and for several."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_run import write_lines
from report_page import words_of

from cluster.record.goodput import PART_WORDS, read_goodput
from launcher.report import wall_time
from launcher.report.goodput import goodput_section
from launcher.report.metrics import TrainLog
from launcher.report.page import build_page
from launcher.report.record import read_record
from launcher.report.runs import reported_runs
from launcher.report.wall_time import run_goodput

T0 = 1_790_000_000.0


def _row(step: int, at: float, attempt: int = 1, **seconds: float) -> dict[str, Any]:
    spent = {f"time/{part}_seconds": value for part, value in seconds.items()}
    return {"kind": "train", "step": step, "time_unix_seconds": T0 + at, "attempt": attempt, "train/loss": 3.0, **spent}


def _run(directory: Path, *, timed: bool = True) -> Path:
    """100 s: 10 to start, 40 of training that stayed, 20 redone, 25 lost, 4 of evaluation, 1 otherwise."""
    directory.mkdir()
    spent: dict[str, float] = {"training": 20.0, "evaluation": 2.0} if timed else {}
    write_lines(directory / "metrics.jsonl", [_row(10, 32, **spent), _row(20, 99, attempt=2, **spent)])
    write_lines(directory / "discarded.jsonl", [_row(20, 52, **spent), {"kind": "eval", "name": "x", "step": 20}])
    events = [("started", 10, 1), ("worker_lost", 53, None), ("resumed", 77, 2), ("finished", 100, None)]
    write_lines(
        directory / "events.jsonl",
        [{"event": name, "time_unix_seconds": T0 + at, "attempt": attempt} for name, at, attempt in events],
    )
    (directory / "run.json").write_text(json.dumps({"name": directory.name, "created_unix_seconds": T0}))
    return directory


def _section(*runs: Path) -> str:
    return goodput_section(reported_runs([read_record(run) for run in runs]))


def test_section_states_the_figure_and_the_parts_of_one_run(tmp_path: Path) -> None:
    words = words_of(_section(_run(tmp_path / "one")))
    assert words.startswith(
        "Time 40.0 % goodput of 1 min 40 s wall time. training 40.0 s, 40.0 % evaluation 4.00 s, 4.00 % "
        "start-up 10.0 s, 10.0 % redone steps 20.0 s, 20.0 % lost 25.0 s, 25.0 % other 1.00 s, 1.00 %"
    )
    assert "data wait" not in words


def test_section_has_a_row_and_a_bar_for_each_attempt_to_one_scale(tmp_path: Path) -> None:
    html = _section(_run(tmp_path / "one"))
    words = words_of(html)
    assert "Attempt Wall time To scale Training Evaluation Start-up Redone steps Lost Other" in words
    assert "1 1 min 17 s 20.0 s 2.00 s 10.0 s 20.0 s 25.0 s –" in words
    assert "2 23.0 s 20.0 s 2.00 s – – – 1.00 s" in words
    bars = re.findall(r'<span class="spent".*?</span>', html)
    widths = [sum(float(width) for width in re.findall(r"width: ([\d.]+)%", bar)) for bar in bars]
    assert widths == [pytest.approx(100), pytest.approx(100), pytest.approx(100 * 23 / 77, abs=0.01)]


def test_section_compares_several_runs_by_their_shares(tmp_path: Path) -> None:
    words = words_of(_section(_run(tmp_path / "one"), _run(tmp_path / "two", timed=False)))
    assert "Run Goodput Wall time Shares Training Evaluation Start-up Redone steps Lost Other" in words
    assert "one 40.0 % 1 min 40 s 40.0 % 4.00 % 10.0 % 20.0 % 25.0 % 1.00 %" in words
    assert "two n/a 1 min 40 s 0 % 0 % 10.0 % 20.0 % 25.0 % 45.0 %" in words


def test_section_tells_how_long_was_compiled_for(tmp_path: Path) -> None:
    run = _run(tmp_path / "one")
    lines = [_row(10, 32, training=5.0, compilation=15.0), _row(20, 99, attempt=2, training=20.0)]
    write_lines(run / "metrics.jsonl", lines)
    html = _section(run)
    assert "training 25.0 s, 25.0 % compilation 15.0 s, 15.0 % start-up" in words_of(html)
    assert '<i class="part compilation" style="width: 15.000%" title="compilation: 15.0 s"></i>' in html


def test_section_says_so_when_the_record_knows_no_times(tmp_path: Path) -> None:
    words = words_of(_section(_run(tmp_path / "old", timed=False)))
    assert "n/a goodput of 1 min 40 s wall time. The record does not say what the time of its steps" in words


def test_section_tells_of_pauses(tmp_path: Path) -> None:
    run = _run(tmp_path / "one")
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps({"event": "resumed", "time_unix_seconds": T0 + 7300, "attempt": 3}) + "\n")
    assert "of 1 min 40 s wall time. Pauses of 2 h are left out." in words_of(_section(run))


def test_section_is_left_out_when_nothing_was_recorded(tmp_path: Path) -> None:
    assert _section(tmp_path) == ""


def test_page_has_the_section_and_no_charts_of_its_figures(tmp_path: Path) -> None:
    html = build_page([read_record(_run(tmp_path / "one"))])
    assert '<section id="time"' in html
    assert words_of(html).count("goodput 40.0 %") == 1  # the card of the headline
    assert "time: training" not in html.lower()


def test_run_goodput_is_that_of_the_files(tmp_path: Path) -> None:
    run = _run(tmp_path / "one")
    assert run_goodput(read_record(run)) == read_goodput(run)


def test_lines_of_long_logs_are_summed_without_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = np.arange(1.0, 1001.0)
    training = np.where(steps % 7 == 0, np.nan, 0.5)
    train = TrainLog(
        step=steps,
        time_unix_seconds=T0 + steps,
        attempt=np.where(steps > 333, 2.0, 1.0),
        values={"time/training_seconds": training, "train/loss": steps},
    )
    whole = list(wall_time._lines(train))
    monkeypatch.setattr(wall_time, "_GROUPS", 10)
    groups = list(wall_time._lines(train))
    assert len(whole) == 1000
    assert len(groups) == 11
    assert [line["step"] for line in groups][:5] == [100, 200, 300, 333, 400]
    assert sum(line["time/training_seconds"] for line in groups) == np.nansum(training)


def test_every_part_has_a_colour() -> None:
    style = (Path(wall_time.__file__).parent / "parts.css").read_text()
    assert [part for part in PART_WORDS if f".{part} {{ --of-part: var(--" not in style] == []
