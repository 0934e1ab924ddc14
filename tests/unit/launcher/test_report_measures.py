"""The section on measures: its figures, plots and tables are those of measures/NAME.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import Page, report_of, words_of

from launcher.report.measures import measures_section
from launcher.report.page import build_page
from launcher.report.record import read_record
from launcher.report.runs import reported_runs
from launcher.report.units import significant
from llm.metrics import Measured, Outputs, measure


def _classified(examples: int = 60, names: tuple[str, ...] = ("no", "maybe", "yes")) -> Measured:
    random = np.random.default_rng(0)
    labels_N = random.integers(len(names), size=examples)
    scores_NC = random.normal(size=(examples, len(names)))
    scores_NC[np.arange(examples), labels_N] += 2
    probabilities_NC = np.exp(scores_NC) / np.exp(scores_NC).sum(axis=1, keepdims=True)
    return measure(
        "sequence_classification",
        Outputs(labels=labels_N, probabilities=probabilities_NC),
        names=names,
        groups={"text_length": ["short", "long"] * (examples // 2)},
        resamples=50,
    )


def _regressed(examples: int = 40) -> Measured:
    random = np.random.default_rng(0)
    labels_N = random.normal(size=examples)
    outputs = Outputs(labels=labels_N, predictions=labels_N + 0.1 * random.normal(size=examples))
    return measure("regression", outputs, resamples=0)


def _run(directory: Path, **measures: Any) -> Path:
    (directory / "measures").mkdir(parents=True)
    for name, found in measures.items():
        facts = found.to_json() if isinstance(found, Measured) else found
        (directory / "measures" / f"{name}.json").write_text(json.dumps(facts))
    return directory


def _section(*runs: Path) -> str:
    return measures_section(reported_runs([read_record(run) for run in runs]))


def test_page_has_no_measures_when_none_were_taken(tmp_path: Path) -> None:
    assert 'id="measures"' not in report_of(tmp_path)


def test_section_states_figures_with_intervals_the_chosen_one_first(tmp_path: Path) -> None:
    measured = _classified()
    words = words_of(_section(_run(tmp_path / "one", val=measured.about(dataset="boolq", split="test", step=1200))))
    assert words.startswith("Measures boolq, test sequence classification, 60 examples, step 1,200 Figure Value 95 %")
    low, high = measured.intervals["f1_macro"]
    first = f"F1, macro chosen by {significant(measured.headline['f1_macro'])}"
    assert f"interval {first} {significant(low, 3)} to {significant(high, 3)} Accuracy" in words
    assert f"Expected calibration error {significant(measured.headline['calibration_error'])} n/a" in words


def test_section_is_named_by_the_file_when_measures_do_not_say_of_what_they_are(tmp_path: Path) -> None:
    words = words_of(_section(_run(tmp_path / "one", held_out=_regressed())))
    assert words.startswith(
        "Measures held_out regression, 40 examples Figure Value Interval Mean squared error chosen by"
    )


@pytest.mark.parametrize(
    ("measured", "titles"),
    [
        (_classified(), ["Confusion", "ROC", "Precision and recall", "Calibration"]),
        (_regressed(), ["Predicted against true", "Residuals"]),
    ],
    ids=["classes", "numbers"],
)
def test_section_draws_what_the_task_has(tmp_path: Path, measured: Measured, titles: list[str]) -> None:
    html = _section(_run(tmp_path / "one", val=measured))
    drawn = html.split('<div class="plots">')[1].split("</div><h4>")[0]
    assert [part.split("</h4>")[0] for part in drawn.split("<h4>")[1:]] == titles


def test_curves_of_every_class_are_drawn_with_their_areas(tmp_path: Path) -> None:
    measured = _classified()
    html = _section(_run(tmp_path / "one", val=measured))
    for curve in measured.curves["roc"]:
        assert f"<title>{curve['name']}: area {significant(curve['area'], 3)}</title>" in html
    assert html.count('<polyline class="line run-') == 6


def test_every_example_is_a_dot_when_numbers_were_predicted(tmp_path: Path) -> None:
    page = Page(_section(_run(tmp_path / "one", val=_regressed(examples=40))))
    assert page.count("circle") == 40
    assert page.count("rect") == 30


def test_slices_are_drawn_to_one_scale(tmp_path: Path) -> None:
    measured = _classified()
    html = _section(_run(tmp_path / "one", val=measured))
    words = words_of(html)
    for group, examples, value, low, high in measured.tables["slices/text_length"].rows:
        figures = (significant(number) for number in (value, low, high) if isinstance(number, float))
        assert "{} {} {} {} to {}".format(group, examples, *figures) in words
    assert "F1, macro by text length Text length Examples F1, macro Interval To scale" in words
    assert html.count('<i class="whisker"') == 2
    assert '<i class="whisker" style="left: 0.00%' in html


def test_class_table_says_not_available_when_a_figure_is_undefined(tmp_path: Path) -> None:
    outputs = Outputs(labels=[0, 1], probabilities=[[0.8, 0.2, 0.0], [0.3, 0.7, 0.0]])
    measured = measure("sequence_classification", outputs, names=["no", "maybe", "yes"], resamples=0)
    assert "yes 0 0 n/a n/a n/a n/a n/a" in words_of(_section(_run(tmp_path / "one", val=measured)))


def test_runs_are_compared_by_the_figure_they_are_chosen_by(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, val=_classified(size)) for name, size in (("one", 60), ("two", 80))]
    words = words_of(_section(*runs))
    assert words.startswith("Measures Dataset Run Figure Value Interval Examples At step val one F1, macro")
    assert "val two F1, macro" in words
    assert "one 1 dataset" in words


def test_measures_come_first_when_a_run_has_them(tmp_path: Path) -> None:
    html = build_page([read_record(_run(tmp_path / "one", val=_classified()))])
    ids = [attributes["id"] for tag, attributes in Page(html).elements if tag == "section"]
    assert ids[:2] == ["charts", "measures"]


def test_report_complains_when_a_file_of_measures_is_damaged(tmp_path: Path) -> None:
    run = _run(tmp_path / "one", future={"schema_version": 9}, val=_regressed())
    (run / "measures" / "torn.json").write_text('{"task": "regr')
    record = read_record(run)
    assert [named.name for named in record.measures] == ["val"]
    assert record.complaints == [
        "measures/future.json has schema_version 9: this version reads 1. "
        "Read it with the version that wrote it, or evaluate the checkpoint again.",
        "measures/torn.json is not a JSON object; what it says is missing here.",
    ]


def test_names_of_classes_cannot_become_markup(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    html = report_of(_run(tmp_path / "one", val=_classified(names=("no", "yes", hostile))))
    assert "<img" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html


def test_page_stays_small_when_classes_and_examples_are_many(tmp_path: Path) -> None:
    many = _classified(20_000, tuple(f"class {place}" for place in range(40)))
    plain = len(report_of(_run(tmp_path / "plain")))
    assert len(report_of(_run(tmp_path / "many", val=many, reg=_regressed(20_000)))) - plain < 600_000
