"""Reading what a run left: whole, torn, hostile or absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from launcher.report.json_facts import Facts, number, read_lines, whole
from launcher.report.metrics import Evaluation, TrainLog, read_metrics
from launcher.report.record import read_record


def _read(tmp_path: Path, *lines: Facts) -> tuple[TrainLog, list[Evaluation]]:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    complaints: list[str] = []
    result = read_metrics(path, complaints)
    assert complaints == []
    return result


def _train(step: object, **values: object) -> Facts:
    return {"kind": "train", "step": step, **{f"train/{key}": value for key, value in values.items()}}


def test_read_lines_leaves_out_a_torn_tail_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "train/lo')
    complaints: list[str] = []
    assert read_lines(path, complaints) == [{"step": 1}, {"step": 2}]
    assert complaints == ["The last line of metrics.jsonl is torn, as a killed writer leaves it; it is left out."]


def test_read_lines_counts_damage_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    # The damaged neighbours make one sound object when they are joined by a comma.
    path.write_text('{"step": 1}\n{"a": [1\n2]}\n{"step": 4}\n')
    complaints: list[str] = []
    assert read_lines(path, complaints) == [{"step": 1}, {"step": 4}]
    assert complaints == ["events.jsonl: 2 lines are not JSON objects and are left out, the first is line 2."]


def test_read_lines_survives_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "started"}\n\xff\xfe\x00\n')
    assert read_lines(path, []) == [{"event": "started"}]


def test_train_log_is_ordered_by_step_and_the_last_line_of_a_step_stands(tmp_path: Path) -> None:
    train, _ = _read(tmp_path, _train(2, loss=9), _train(1, loss=3), _train(2, loss=2))
    assert train.step.tolist() == [1, 2]
    assert train.column("train/loss").tolist() == [3, 2]


def test_train_log_keeps_null_and_not_finite_apart(tmp_path: Path) -> None:
    broken = _train(2, loss=None) | {"nonfinite": ["train/loss"]}
    train, _ = _read(tmp_path, _train(1, loss=None), broken, _train(3, loss=float("nan")), _train(4, loss=1))
    loss = train.column("train/loss")
    assert np.isnan(loss).tolist() == [True, False, False, False]
    assert np.isinf(loss).tolist() == [False, True, True, False]


def test_train_log_takes_a_metric_that_begins_in_mid_run(tmp_path: Path) -> None:
    train, _ = _read(tmp_path, _train(1, loss=3), _train(2, loss=2, z_loss=0.5))
    np.testing.assert_array_equal(train.column("train/z_loss"), [np.nan, 0.5])


def test_train_log_ignores_values_of_another_type(tmp_path: Path) -> None:
    train, _ = _read(tmp_path, _train(1, loss="high"), _train(2, loss=[1]), _train(3, loss=10**400), _train("x"))
    np.testing.assert_array_equal(train.column("train/loss"), [np.nan, np.nan, np.inf])


def test_evaluations_are_unique_by_name_and_step(tmp_path: Path) -> None:
    line = {"kind": "eval", "name": "austen", "step": 5, "eval/loss": 3.0}
    _, evaluations = _read(tmp_path, line, line | {"eval/loss": 2.0}, line | {"name": "bible"})
    assert [(one.name, one.step, one.values["eval/loss"]) for one in evaluations] == [
        ("austen", 5, 2.0),
        ("bible", 5, 3.0),
    ]


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "\x00"])
def test_read_record_complains_when_run_json_is_no_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    record = read_record(tmp_path)
    assert record.facts == {}
    assert record.complaints == [f"{tmp_path.name}/run.json is not a JSON object; what it says is missing here."]


def test_read_record_ignores_checkpoints_without_a_manifest(tmp_path: Path) -> None:
    for step in (100, 20):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    manifest = {"step": 20, "files": {"a": {"size": 5}, "b": {"size": 7}}}
    (tmp_path / "checkpoints" / "step-00000020" / "MANIFEST.json").write_text(json.dumps(manifest))
    (checkpoint,) = read_record(tmp_path).checkpoints
    assert (checkpoint.step, checkpoint.files, checkpoint.size_bytes) == (20, 2, 12)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, None),
        ("1", None),
        (None, None),
        (float("-inf"), float("inf")),
        (10**400, float("inf")),
    ],
)
def test_number_takes_numbers_only(value: object, expected: float | None) -> None:
    assert number(value) == expected
    assert whole(float("inf")) is None
