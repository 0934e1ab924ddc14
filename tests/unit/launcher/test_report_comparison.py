"""Several runs on one page: told apart, drawn together, their differences found, the page small."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import data_of, words_of

from launcher.report.comparison import cautions
from launcher.report.configuration import differences
from launcher.report.metrics import Evaluation, TrainLog
from launcher.report.page import build_page, write_report
from launcher.report.record import Event, RunRecord, Sample
from launcher.report.runs import reported_runs

PAGE_LIMIT_BYTES = 5_000_000
LONG_STEPS = 1_000_000
HOSTILE = "</script><img src=x onerror=alert(1)> & \" '"


def _record(name: str, *, directory: str = "", steps: int = 40, **changes: Any) -> RunRecord:
    """A run with every figure that the trainer logs."""
    rng = np.random.default_rng(len(name))
    step = np.arange(1, steps + 1, dtype=np.float64)
    loss = 3 + 4 * np.exp(-step / (0.1 * steps)) + rng.normal(0, 0.05, steps)
    values = {
        "train/loss": loss,
        "train/perplexity": np.exp(loss),
        "train/grad_norm": rng.uniform(0.5, 1, steps),
        "train/learning_rate": np.linspace(1e-3, 1e-4, steps),
        "train/tokens": 2048 * step,
        "speed/tokens_per_second": rng.uniform(9e3, 1e4, steps),
        "memory/peak_bytes": np.full(steps, 700 * 2.0**20),
    }
    evaluation = Evaluation(
        name="austen", step=steps, time_unix_seconds=None, attempt=1, values={"eval/loss": 3.2, "eval/perplexity": 24.5}
    )
    record = RunRecord(
        directory=Path(directory or f"/storage/{name}"),
        name=name,
        facts={"name": name, "data_plan": {"tokenizer": "one"}, "datasets": [{"name": "austen", "fingerprint": "f"}]},
        config_yaml=f"name: {name}\ntrain: {{max_steps: {steps}, micro_batch_size: 4}}\n",
        train=TrainLog(step=step, time_unix_seconds=1e9 + step, attempt=np.ones(steps), values=values),
        evaluations=[evaluation],
        events=[],
        checkpoints=[],
        samples=[],
    )
    return replace(record, **changes)


def _with_best(record: RunRecord, perplexity: float) -> RunRecord:
    line = replace(record.evaluations[0], values={"eval/perplexity": perplexity})
    return replace(record, evaluations=[line])


def _section(html: str, anchor: str) -> str:
    found = re.search(rf'<section id="{anchor}".*?</section>', html, re.DOTALL)
    assert found is not None
    return found[0]


def _event(name: str, step: int, **details: Any) -> Event:
    return Event(name=name, step=step, time_unix_seconds=1e9 + step, attempt=1, details=details)


def test_charts_hold_the_series_of_every_run() -> None:
    data = data_of(build_page([_record("a"), _record("b", steps=60)]))
    assert data["runs"] == [{"label": "a"}, {"label": "b"}]
    for chart in data["charts"]:
        assert [one["run"] for one in chart["series"] if one["role"] == "train"] == [0, 1]
    loss = data["charts"][0]
    assert [(one["run"], one["label"]) for one in loss["series"] if one["role"] == "eval"] == [
        (0, "validation austen"),
        (1, "validation austen"),
    ]
    assert [one["step"][-1] for one in loss["series"] if one["role"] == "train"] == [40, 60]


def test_a_run_in_a_comparison_has_the_curves_that_it_has_alone() -> None:
    alone = data_of(build_page([_record("b")]))
    together = data_of(build_page([_record("a"), _record("b")]))
    for one, both in zip(alone["charts"], together["charts"], strict=True):
        assert [series | {"run": 1} for series in one["series"]] == [
            series for series in both["series"] if series["run"]
        ]


def test_axes_are_those_of_any_run_when_one_lacks_tokens_and_times() -> None:
    bare = _record("bare")
    steps = len(bare.train)
    train = TrainLog(
        step=bare.train.step,
        time_unix_seconds=np.full(steps, np.nan),
        attempt=np.full(steps, np.nan),
        values={"train/loss": bare.train.column("train/loss")},
    )
    data = data_of(build_page([replace(bare, train=train, evaluations=[]), _record("whole")]))
    assert data["axes"] == ["step", "tokens", "seconds"]
    assert data["charts"][0]["series"][0]["tokens"] is None


@pytest.mark.parametrize(
    ("names", "directories", "labels"),
    [
        (("a", "b"), ("/x/a", "/x/b"), ["a", "b"]),
        (("q", "q"), ("/x/1/runs/q", "/x/2/runs/q"), ["q (1)", "q (2)"]),
        (("q", "q"), ("/x/1/runs/q", "/x/1/runs/q-copy"), ["q (q)", "q (q-copy)"]),
        (("q", "q", "z"), ("/q", "/x/q", "/z"), ["q (/)", "q (x)", "z"]),
    ],
)
def test_labels_tell_runs_of_one_name_apart(
    names: tuple[str, ...], directories: tuple[str, ...], labels: list[str]
) -> None:
    records = [_record(name, directory=path) for name, path in zip(names, directories, strict=True)]
    assert [run.label for run in reported_runs(records)] == labels


def test_differences_name_only_the_settings_that_differ_when_nested_or_missing() -> None:
    first = "name: a\noptimizer: {learning_rate: 0.001, betas: [0.9, 0.95]}\nzero: {stage: 1}\n"
    second = "name: b\noptimizer: {learning_rate: 3.0e-4, betas: [0.9, 0.95]}\nextra: null\n"
    assert differences([first, second]) == [
        ("name", ["a", "b"]),
        ("optimizer.learning_rate", ["0.001", "0.0003"]),
        ("zero.stage", ["1", None]),
        ("extra", [None, "null"]),
    ]


def test_differences_count_a_config_without_settings_when_it_is_not_readable() -> None:
    assert differences(["name: a\n", "{", "[1]"]) == [("name", ["a", None, None])]


def test_configuration_section_says_so_when_all_settings_are_the_same() -> None:
    records = [_record(name, config_yaml="seed: 1\n") for name in ("a", "b")]
    assert "All settings are the same." in words_of(_section(build_page(records), "configuration"))


def test_configuration_section_lists_differing_settings_before_the_whole_configs() -> None:
    words = words_of(_section(build_page([_record("a"), _record("b", steps=60)]), "configuration"))
    table = words.partition(" a config.yaml")[0]
    assert table == "Configuration a b name a b train.max_steps 40 60"


def test_headline_marks_the_best_perplexity_when_runs_can_be_ranked() -> None:
    html = build_page([_with_best(_record("a"), 30.0), _with_best(_record("b"), 20.0)])
    assert re.findall(r"<b>([\d.]+)</b> <b class=\"badge good\">best", html) == ["20.00"]


def test_headline_marks_nothing_and_warns_when_tokenizers_differ() -> None:
    other = {"data_plan": {"tokenizer": "another"}}
    records = [_with_best(_record("a"), 30.0), _with_best(_record("b", facts=other), 20.0)]
    html = build_page(records)
    warning = "The runs do not share a tokenizer: losses and perplexities per token are not comparable between them."
    assert cautions(reported_runs(records)) == [warning]
    assert warning in words_of(html)
    assert not re.search(r"<b>[\d.]+</b> <b class=\"badge good\">best", html)


def test_headline_marks_nothing_and_warns_when_only_some_runs_count_answers_alone() -> None:
    facts = {"data_plan": {"tokenizer": "one", "answers_only": True}}
    records = [_with_best(_record("a"), 30.0), _with_best(_record("b", facts=facts), 20.0)]
    warning = "Of some runs only answers count, of the others every token: losses and perplexities are of other tokens."
    assert cautions(reported_runs(records)) == [warning]
    html = build_page(records)
    assert "per token of answers" in words_of(html)
    assert not re.search(r"<b>[\d.]+</b> <b class=\"badge good\">best", html)


def test_headline_warns_when_datasets_differ() -> None:
    facts = {"data_plan": {"tokenizer": "one"}, "datasets": [{"name": "austen", "fingerprint": "g"}]}
    assert cautions(reported_runs([_record("a"), _record("b", facts=facts)])) == [
        "The runs were trained on different datasets: a validation set of the same name may be another text."
    ]


def test_memory_has_one_unit_on_the_page_when_runs_differ_in_size() -> None:
    large = _record("large")
    large.train.values["memory/peak_bytes"][:] = 3 * 2.0**30
    html = build_page([_record("small"), large])
    chart = next(chart for chart in data_of(html)["charts"] if chart["title"] == "Peak memory")
    assert chart["unit"] == "GiB"
    assert [series["value"][0] for series in chart["series"]] == [0.683594, 3.0]
    assert "Peak memory, GiB" in words_of(html)
    assert "MiB" not in html


def test_facts_are_said_once_when_equal_and_marked_when_not() -> None:
    layout = {"world_size": 2, "precision": "fp32"}
    records = [_record("a", facts={"layout": layout}), _record("b", facts={"layout": layout | {"world_size": 4}})]
    section = _section(build_page(records), "run-data-and-environment")
    (differing,) = re.findall(r'<tr class="differs">.*?</tr>', section)
    assert words_of(differing) == "Workers 2 4"
    assert words_of(section).count("fp32") == 1


def test_events_belong_to_their_run() -> None:
    records = [
        _record("a", events=[_event("worker_lost", 10, rank=3)]),
        _record("b", events=[_event("driver_lost", 20)]),
    ]
    html = build_page(records)
    marks = [(mark["run"], mark["title"], mark["tone"], mark["step"]) for mark in data_of(html)["events"]]
    assert marks == [(0, "worker lost", "bad", 10), (1, "driver lost", "bad", 20)]
    assert "1 event, 1 × worker lost" in words_of(_section(html, "events"))


def test_complaints_name_their_run_when_there_are_several() -> None:
    html = build_page([_record("a"), _record("b", complaints=["metrics.jsonl is torn."])])
    assert "<li>b: metrics.jsonl is torn.</li>" in html


def test_levels_are_said_once_when_runs_share_the_baseline() -> None:
    def level(value: float) -> dict[str, Any]:
        return {"baseline": {"name": "bigram", "perplexity": value}}

    shared = data_of(build_page([_record("a", facts=level(60)), _record("b", facts=level(60))]))
    apart = data_of(build_page([_record("a", facts=level(60)), _record("b", facts=level(70))]))
    assert shared["charts"][1]["levels"] == [{"label": "bigram", "value": 60.0, "runs": [0, 1]}]
    assert [one["label"] for one in apart["charts"][1]["levels"]] == ["bigram, a", "bigram, b"]


def test_page_of_several_runs_escapes_every_text() -> None:
    sample = Sample(step=1, name=HOSTILE, prompt=HOSTILE, text=HOSTILE)
    facts = {HOSTILE: HOSTILE, "layout": {HOSTILE: HOSTILE}, "baseline": {"name": HOSTILE, "perplexity": 9}}
    hostile = _record(
        HOSTILE,
        facts=facts,
        config_yaml=f"k: {json.dumps(HOSTILE)}\n{json.dumps(HOSTILE)}: 1\n",
        samples=[sample],
        events=[_event(HOSTILE, 3, **{HOSTILE: HOSTILE})],
        complaints=[HOSTILE],
    )
    html = build_page([hostile, _record("b")])
    assert "<img" not in html
    assert html.count("<script") == html.count("</script>") == 2
    assert HOSTILE in words_of(_section(html, "text-samples"))


@pytest.mark.parametrize("count", [1, 5])
def test_page_stays_small_when_a_million_logged_steps_are_shared_by_runs(count: int) -> None:
    long = _record("run 0", steps=LONG_STEPS // count)
    records = [replace(long, name=f"run {place}") for place in range(count)]
    html = build_page(records)
    assert 500_000 < len(html.encode()) < PAGE_LIMIT_BYTES
    assert f"{LONG_STEPS // count:,} logged steps are drawn in" in html


def test_page_stays_small_when_runs_log_many_figures_of_their_own() -> None:
    long = _record("run 0", steps=20_000)
    further = {f"train/figure_{place}": long.train.column("train/loss") for place in range(30)}
    train = replace(long.train, values=long.train.values | further)
    records = [replace(long, name=f"run {place}", train=train) for place in range(5)]
    assert len(build_page(records).encode()) < PAGE_LIMIT_BYTES


def test_build_page_refuses_when_no_run_is_given() -> None:
    with pytest.raises(ValueError, match="needs at least one run"):
        build_page([])


def test_write_report_refuses_several_runs_when_no_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 runs have no directory in common: name the output file"):
        write_report(tmp_path, tmp_path)
