"""What the report says of a run, read from a directory that looks like a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from example_run import write_example_run, write_lines
from report_page import Page, data_of, report_of


def _chart(data: dict[str, Any], title: str) -> dict[str, Any]:
    return next(chart for chart in data["charts"] if chart["title"] == title)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_example_run(tmp_path / "austen")


def test_cards_state_the_figures_of_the_record(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    best = min((line for line in lines if line["kind"] == "eval"), key=lambda line: line["eval/perplexity"])
    page = Page(report_of(run))
    assert page.after("Training loss") == [
        f"{last['train/loss']:.3f}",
        "nats/token",
        f"perplexity {last['train/perplexity']:.2f} at step 2,000",
    ]
    below = 100 * (1 - best["eval/perplexity"] / 68.3)
    assert page.after("Best validation perplexity") == [
        f"{best['eval/perplexity']:.2f}",
        "per token",
        f"austen, step {best['step']:,}; {below:.1f} % below interpolated Kneser-Ney bigram (68.30)",
    ]
    assert page.after("Tokens trained") == ["4.10 M", "tokens", "2,000 of 2,000 steps"]
    assert page.after("Attempts", 2) == ["2", "1 resume, 1 lost worker"]
    assert page.after("Checkpoints kept", 2) == ["3", "newest at step 2,000, 20 saved in all, 1 rejected"]
    assert page.after("Peak memory", 2) == ["1.78", "GiB"]


def test_speed_card_shows_not_available_when_mfu_is_null(run: Path) -> None:
    html = report_of(run)
    assert Page(html).after("Speed")[1:] == ["tokens/s", "median; MFU n/a"]
    assert "Model FLOP utilisation" not in {chart["title"] for chart in data_of(html)["charts"]}


def test_charts_hold_train_and_eval_over_three_axes_with_the_baseline(run: Path) -> None:
    data = data_of(report_of(run))
    perplexity = _chart(data, "Perplexity")
    assert data["axes"] == ["step", "tokens", "seconds"]
    assert [series["label"] for series in perplexity["series"]] == ["training", "validation austen"]
    assert perplexity["levels"] == [{"label": "interpolated Kneser-Ney bigram", "value": 68.3, "runs": [0]}]
    for series in perplexity["series"]:
        assert len(series["step"]) == len(series["tokens"]) == len(series["seconds"]) == len(series["value"])
    assert perplexity["series"][1]["tokens"][0] == 100 * 2048


def test_events_are_placed_at_their_step_or_at_the_last_one_before_them(run: Path) -> None:
    marks = {mark["title"]: mark for mark in data_of(report_of(run))["events"]}
    assert marks["worker lost"]["step"] == 1200
    assert marks["resumed"]["step"] == 1100  # it carries no step; 1101 to 1200 were repeated after it
    assert marks["resumed"]["detail"] == ("4 workers, ZeRO 2, fp32 → 2 workers, ZeRO 2, fp32 · from step 1,100")


@pytest.mark.parametrize(
    ("event", "status"),
    [("finished", "finished"), ("failed", "failed"), ("stopped", "stopped"), ("worker_lost", "recovering")],
)
def test_status_follows_the_last_event(tmp_path: Path, event: str, status: str) -> None:
    html = report_of(write_example_run(tmp_path / "run", steps=200, last_event=event))
    assert f'<p class="status {status}">' in html


def test_nonfinite_values_break_the_curve_and_are_counted(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    broken = [line for line in lines if line["kind"] == "train"][50:53]
    for line in broken:
        line |= {
            "train/loss": None,
            "train/perplexity": None,
            "nonfinite": ["train/loss", "train/perplexity"],
        }
    write_lines(run / "metrics.jsonl", lines)
    series = _chart(data_of(report_of(run)), "Loss")["series"][0]
    assert series["nonfinite"] == 3
    assert [step for step, value in zip(series["step"], series["value"], strict=True) if value is None] == [
        line["step"] for line in broken
    ]


def test_page_says_so_when_the_run_is_empty(tmp_path: Path) -> None:
    html = report_of(tmp_path)
    page = Page(html)
    assert "No step has been logged yet." in page.texts
    assert page.after("Training loss", 2) == ["n/a", "no step logged yet"]
    assert tmp_path.name in page.after("Longhaul run")
    assert '<p class="status unknown">' in html


@pytest.mark.parametrize("missing", ["metrics.jsonl", "events.jsonl", "run.json", "config.yaml", "samples.jsonl"])
def test_report_is_written_when_a_file_is_missing(run: Path, missing: str) -> None:
    (run / missing).unlink()
    assert "</html>" in report_of(run)


def test_page_shows_metrics_that_it_does_not_know(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"kind": "train", "step": 2001, "train/label_smoothing": 0.25}) + "\n")
        metrics.write(json.dumps({"kind": "eval", "step": 2001, "name": "austen", "eval/accuracy": 0.75}) + "\n")
    data = data_of(report_of(run))
    assert _chart(data, "Label smoothing")["series"][0]["value"] == [0.25]
    assert _chart(data, "Accuracy")["series"][0]["value"] == [0.75]


_ROUTED = {
    "router/largest_load": 1.75,
    "router/smallest_load": 0.5,
    "train/router_balance": 1.03125,
    "train/router_z": 6.5,
    "train/z_loss": 0.015625,
}
"""What a train line of a model with experts has besides, and the z-loss."""
_OF_EXPERTS = ("Busiest expert", "Idlest expert", "Balance of the routers", "Z-loss of the routers", "Z-loss")


def test_page_shows_and_explains_what_experts_did(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"kind": "train", "step": 2001, **_ROUTED}) + "\n")
    data = data_of(report_of(run))
    charts = [_chart(data, title) for title in _OF_EXPERTS]
    assert [chart["series"][0]["value"][-1] for chart in charts] == list(_ROUTED.values())
    assert [chart["unit"] for chart in charts[:3]] == ["× an even share", "× an even share", "1 where even"]
    assert all(chart["note"].endswith(".") for chart in charts)
    assert [chart["title"] for chart in data["charts"][-5:]] == list(_OF_EXPERTS)


def test_page_has_no_charts_of_experts_when_there_are_none(run: Path) -> None:
    assert not {chart["title"] for chart in data_of(report_of(run))["charts"]} & set(_OF_EXPERTS)


def test_page_reads_the_record_as_the_driver_writes_it(run: Path) -> None:
    layout = {"world_size": 2, "zero_stage": 3, "precision": "bf16"}
    facts = {"layout": layout, "datasets": [{"name": "first", "tokens": 1234}, {"name": "second"}]}
    (run / "run.json").write_text(json.dumps(facts))
    write_lines(
        run / "events.jsonl",
        [{"event": "resumed", "from_step": 100, "layout_changes": ["zero_stage 2 -> 3"], "layout": layout}],
    )
    manifest = {"step": 2000, "run": {"data_position": 64_000, "layout": layout}}
    (run / "checkpoints" / "step-00002000" / "MANIFEST.json").write_text(json.dumps(manifest))
    page = Page(report_of(run))
    assert page.after("step-00002000", 4) == ["2 workers, ZeRO 3, bf16", "n/a", "n/a", "64,000"]
    assert "2 workers, ZeRO 3, bf16 · from step 100 · layout changes zero_stage 2 -> 3" in page.texts
    assert page.after("Dataset 1", 4) == ["Name", "first", "Tokens", "1,234"]
