"""The report as a reader gets it: built from a run directory that looks like a real one."""

from __future__ import annotations

import json
import math
import random
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from launcher.report import write_report

BEGIN = 1_760_000_000.0
HOSTILE = "</script><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)> & \" $title"
PAGE_LIMIT_BYTES = 5_000_000


def write_example_run(directory: Path, *, steps: int = 2000, log_every: int = 10, last_event: str = "finished") -> Path:
    """A run that lost a worker after 60 % of its steps and went on with two workers instead of four."""
    rng = random.Random(7)
    directory.mkdir(parents=True, exist_ok=True)
    lost_at = steps * 6 // 10
    resumed_from = lost_at - steps // 20
    clock = BEGIN + 9.0
    metrics: list[dict[str, Any]] = []
    for step in [1, *range(log_every, steps + 1, log_every)]:
        attempt = 1 if step <= resumed_from else 2
        if attempt == 2 and metrics[-1]["attempt"] == 1:
            clock += 0.2 * (lost_at - resumed_from) + 48
        speed = 2048 * (10.5 if attempt == 1 else 6.1) * rng.uniform(0.93, 1.04)
        clock += (1 if step == 1 else log_every) * 2048 / speed
        loss = 3.35 + 4.9 * math.exp(-step / (steps * 0.09)) - 0.25 * step / steps + rng.gauss(0, 0.05)
        line: dict[str, Any] = {"kind": "train", "step": step, "time_unix_seconds": clock, "attempt": attempt}
        line |= {"train/loss": loss, "train/perplexity": math.exp(loss)}
        line |= {"train/grad_norm": 0.5 + 2 * math.exp(-step / (0.05 * steps)) + abs(rng.gauss(0, 0.12))}
        line |= {"train/learning_rate": _learning_rate(step, steps), "train/tokens": step * 2048}
        line |= {"speed/tokens_per_second": speed, "speed/mfu": None}
        line |= {"memory/peak_bytes": (1.31 if attempt == 1 else 1.78) * 2**30 + rng.uniform(0, 4e6)}
        metrics.append(line)
        if step % (steps // 20) == 0:
            loss = 3.5 + 4.7 * math.exp(-step / (steps * 0.1)) - 0.2 * step / steps + rng.gauss(0, 0.01)
            line = {"kind": "eval", "step": step, "time_unix_seconds": clock + 1, "attempt": attempt}
            metrics.append(line | {"name": "austen", "eval/loss": loss, "eval/perplexity": math.exp(loss)})
    _write_lines(directory / "metrics.jsonl", metrics)
    _write_lines(directory / "events.jsonl", _events(metrics, steps, lost_at, resumed_from, last_event))
    _write_lines(directory / "samples.jsonl", _samples(steps))
    (directory / "config.yaml").write_text(CONFIG.replace("STEPS", str(steps)))
    (directory / "run.json").write_text(json.dumps(FACTS))
    for step in (steps * 8 // 10, steps * 9 // 10, steps):
        place = directory / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True, exist_ok=True)
        files = [{"path": f"attempt-2/rank-{rank}.bin", "size_bytes": 38_402_112} for rank in range(2)]
        manifest = {"step": step, "data_position": step * 32, "files": files}
        manifest |= {"topology": {"world_size": 2, "zero_stage": 2, "precision": "fp32"}}
        (place / "MANIFEST.json").write_text(json.dumps(manifest))
    return directory


def _learning_rate(step: int, steps: int) -> float:
    warmup = steps // 20
    if step < warmup:
        return 1e-3 * step / warmup
    return 1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def _events(
    metrics: list[dict[str, Any]], steps: int, lost_at: int, resumed_from: int, last: str
) -> list[dict[str, Any]]:
    when = {line["step"]: line["time_unix_seconds"] for line in metrics}
    four = {"world_size": 4, "zero_stage": 2, "precision": "fp32"}
    lost_time = when[resumed_from] + 0.2 * (lost_at - resumed_from)
    events: list[dict[str, Any]] = [{"event": "started", "time_unix_seconds": BEGIN, "attempt": 1, "topology": four}]
    for step in range(steps // 20, steps + 1, steps // 20):
        if step == resumed_from + steps // 20:
            lost = {"event": "worker_lost", "time_unix_seconds": lost_time, "attempt": 1, "step": lost_at}
            rejected = {
                "event": "checkpoint_rejected",
                "time_unix_seconds": lost_time + 20,
                "attempt": 2,
                "step": step,
            }
            resumed = {"event": "resumed", "time_unix_seconds": lost_time + 31, "attempt": 2}
            events += [
                lost | {"rank": 3, "node": "10.0.0.7", "reason": "SIGKILL"},
                rejected | {"reason": "rank-2.bin has 1,024 bytes of 38,402,112"},
                resumed
                | {
                    "from_step": resumed_from,
                    "topology_before": four,
                    "topology_after": four | {"world_size": 2},
                },
            ]
        attempt = 1 if step <= resumed_from else 2
        saved = {
            "event": "checkpoint_saved",
            "time_unix_seconds": when[step] + 0.8,
            "attempt": attempt,
            "step": step,
        }
        events.append(saved | {"write_seconds": 0.41, "size_bytes": 76_804_224})
    return [*events, {"event": last, "time_unix_seconds": when[steps] + 3, "attempt": 2, "step": steps}]


def _samples(steps: int) -> list[dict[str, Any]]:
    texts = (
        "the the of and to. , a the was in her of",
        "she was not a very little, and the house of her sister in the morning of Bath.",
        "that a woman of her understanding could not be long in the room without feeling that he had come "
        "for no other reason than to see her sister.\n\nMr. Knightley said nothing; but his look was kind.",
    )
    prompt = "It is a truth universally acknowledged, "
    return [{"step": steps * (n + 1) // 3, "prompt": prompt, "text": prompt + text} for n, text in enumerate(texts)]


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


CONFIG = """# resolved
name: austen
data: {dataset: sample:austen, seq_len: 256}
model:
  hidden_size: 256
  num_hidden_layers: 6
train:
  max_steps: STEPS
  global_batch_size: 32
optimizer:
  learning_rate: 1.0e-3
"""
FACTS: dict[str, Any] = {
    "name": "austen",
    "created_unix_seconds": BEGIN,
    "wandb": {"id": "k3v9x2qa", "mode": "offline", "project": "longhaul"},
    "data_plan": {"fingerprint": "9f86d081884c7d65", "seq_len": 256, "seed": 1234, "packing": "stream"},
    "dataset": {"name": "austen", "tokens": 1_046_733, "documents": 391, "tokenizer": {"vocabulary": 4096}},
    "model": {"parameters": 6_034_688},
    "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "cpu", "hostname": "node-0"},
    "topology": {"world_size": 4, "zero_stage": 2, "precision": "fp32", "threads": 1},
    "baseline": {"name": "interpolated Kneser-Ney bigram", "perplexity": 68.3},
}


class _Page(HTMLParser):
    """Elements by tag, text by headline label, and what the page would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text: str) -> None:
        if text.strip():
            self.texts.append(text.strip())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def after(self, label: str, count: int = 3) -> list[str]:
        place = self.texts.index(label)
        return self.texts[place + 1 : place + 1 + count]


def _report(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def _data(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>\n<script>\n', html, re.DOTALL)
    assert found is not None
    assert "<" not in found[1]
    data: dict[str, Any] = json.loads(found[1])
    return data


def _chart(data: dict[str, Any], title: str) -> dict[str, Any]:
    return next(chart for chart in data["charts"] if chart["title"] == title)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_example_run(tmp_path / "austen")


def test_write_report_writes_into_the_run_directory_and_leaves_no_temporary_file(run: Path) -> None:
    before = set(run.iterdir())
    output = write_report(run)
    assert output == run / "report.html"
    assert set(run.iterdir()) - before == {output}


def test_write_report_writes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "pages" / "one.html"
    assert write_report(run, output=output) == output
    assert output.read_text().startswith("<!doctype html>")


def test_write_report_keeps_the_old_page_when_renaming_fails(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = write_report(run)
    output.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr("launcher.report.page.os.replace", refuse)
    with pytest.raises(OSError, match="disk gone"):
        write_report(run)
    assert output.read_text() == "old"
    assert not list(run.glob(".report*"))


def test_write_report_refuses_when_the_directory_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_report(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"{tmp_path / 'nowhere'} is not a run directory: no directory has that path. "
        "Name the directory that holds the run's metrics.jsonl, which is storage/name of its config."
    )


def test_cards_state_the_figures_of_the_record(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    best = min((line for line in lines if line["kind"] == "eval"), key=lambda line: line["eval/perplexity"])
    page = _Page(_report(run))
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
    html = _report(run)
    assert _Page(html).after("Speed")[1:] == ["tokens/s", "median; MFU n/a"]
    assert "Model FLOP utilisation" not in {chart["title"] for chart in _data(html)["charts"]}


def test_charts_hold_train_and_eval_over_three_axes_with_the_baseline(run: Path) -> None:
    data = _data(_report(run))
    perplexity = _chart(data, "Perplexity")
    assert data["axes"] == ["step", "tokens", "seconds"]
    assert [series["label"] for series in perplexity["series"]] == ["training", "validation austen"]
    assert perplexity["levels"] == [{"label": "interpolated Kneser-Ney bigram", "value": 68.3, "runs": [0]}]
    for series in perplexity["series"]:
        assert len(series["step"]) == len(series["tokens"]) == len(series["seconds"]) == len(series["value"])
    assert perplexity["series"][1]["tokens"][0] == 100 * 2048


def test_events_are_placed_at_their_step_or_at_the_last_one_before_them(run: Path) -> None:
    marks = {mark["title"]: mark for mark in _data(_report(run))["events"]}
    assert marks["worker lost"]["step"] == 1200
    assert marks["resumed"]["step"] == 1100  # it carries no step; 1101 to 1200 were repeated after it
    assert marks["resumed"]["detail"] == ("4 workers, ZeRO 2, fp32 → 2 workers, ZeRO 2, fp32 · from step 1,100")


@pytest.mark.parametrize(
    ("event", "status"),
    [("finished", "finished"), ("failed", "failed"), ("stopped", "stopped"), ("worker_lost", "recovering")],
)
def test_status_follows_the_last_event(tmp_path: Path, event: str, status: str) -> None:
    html = _report(write_example_run(tmp_path / "run", steps=200, last_event=event))
    assert f'<p class="status {status}">' in html


def test_page_escapes_every_text_of_the_run(run: Path) -> None:
    (run / "run.json").write_text(
        json.dumps({"name": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}, "baseline": FACTS["baseline"] | {"name": HOSTILE}})
    )
    (run / "config.yaml").write_text(f"{HOSTILE}: {HOSTILE}\n- {HOSTILE}\n")
    _write_lines(run / "samples.jsonl", [{"step": 1, "prompt": HOSTILE, "text": HOSTILE + HOSTILE}])
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(
            json.dumps({"kind": "eval", "step": 7, "name": HOSTILE, "eval/loss": 1, f"eval/{HOSTILE}": 2}) + "\n"
        )
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps({"event": HOSTILE, "step": 7, "reason": HOSTILE}) + "\n")
    checkpoint = run / "checkpoints" / "step-00000001 <b>"
    checkpoint.mkdir()
    (checkpoint / "MANIFEST.json").write_text(json.dumps({"topology": {HOSTILE: HOSTILE}}))
    html = _report(run)
    page = _Page(html)
    assert page.count("script") == 2
    assert page.count("img") == 0
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert "step-00000001 <b>" in page.texts
    assert any(mark["title"].startswith("</script>") for mark in _data(html)["events"])


def test_page_loads_nothing_from_elsewhere(run: Path) -> None:
    html = _report(run)
    page = _Page(html)
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "poster"):
            assert re.fullmatch(r"|#[\w-]+", attributes.get(name) or "")
    assert page.count("link") == 0
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", html)
    assert "default-src 'none'" in html


def test_page_keeps_the_licence_of_what_it_embeds(run: Path) -> None:
    assert "Copyright (c) 2022 Leon Sorokin" in _report(run)


def test_nonfinite_values_break_the_curve_and_are_counted(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    broken = [line for line in lines if line["kind"] == "train"][50:53]
    for line in broken:
        line |= {
            "train/loss": None,
            "train/perplexity": None,
            "nonfinite": ["train/loss", "train/perplexity"],
        }
    _write_lines(run / "metrics.jsonl", lines)
    series = _chart(_data(_report(run)), "Loss")["series"][0]
    assert series["nonfinite"] == 3
    assert [step for step, value in zip(series["step"], series["value"], strict=True) if value is None] == [
        line["step"] for line in broken
    ]


def test_page_says_so_when_the_run_is_empty(tmp_path: Path) -> None:
    html = _report(tmp_path)
    page = _Page(html)
    assert "No step has been logged yet." in page.texts
    assert page.after("Training loss", 2) == ["n/a", "no step logged yet"]
    assert tmp_path.name in page.after("Longhaul run")
    assert '<p class="status unknown">' in html


@pytest.mark.parametrize("missing", ["metrics.jsonl", "events.jsonl", "run.json", "config.yaml", "samples.jsonl"])
def test_report_is_written_when_a_file_is_missing(run: Path, missing: str) -> None:
    (run / missing).unlink()
    assert "</html>" in _report(run)


def test_page_shows_metrics_that_it_does_not_know(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"kind": "train", "step": 2001, "train/z_loss": 0.25}) + "\n")
        metrics.write(json.dumps({"kind": "eval", "step": 2001, "name": "austen", "eval/accuracy": 0.75}) + "\n")
    data = _data(_report(run))
    assert _chart(data, "Z loss")["series"][0]["value"] == [0.25]
    assert _chart(data, "Accuracy")["series"][0]["value"] == [0.75]


def test_page_reads_the_record_as_the_driver_writes_it(run: Path) -> None:
    layout = {"world_size": 2, "zero_stage": 3, "precision": "bf16"}
    facts = {"layout": layout, "datasets": [{"name": "first", "tokens": 1234}, {"name": "second"}]}
    (run / "run.json").write_text(json.dumps(facts))
    _write_lines(
        run / "events.jsonl",
        [{"event": "resumed", "from_step": 100, "layout_changes": ["zero_stage 2 -> 3"], "layout": layout}],
    )
    manifest = {"step": 2000, "run": {"data_position": 64_000, "layout": layout}}
    (run / "checkpoints" / "step-00002000" / "MANIFEST.json").write_text(json.dumps(manifest))
    page = _Page(_report(run))
    assert page.after("step-00002000", 4) == ["2 workers, ZeRO 3, bf16", "n/a", "n/a", "64,000"]
    assert "2 workers, ZeRO 3, bf16 · from step 100 · layout changes zero_stage 2 -> 3" in page.texts
    assert page.after("Dataset 1", 4) == ["Name", "first", "Tokens", "1,234"]


@pytest.mark.slow
def test_report_of_a_million_logged_steps_is_small_and_quick(tmp_path: Path) -> None:
    run = write_example_run(tmp_path / "long", steps=1_000_000, log_every=1)
    begin = time.process_time()
    size = write_report(run).stat().st_size
    print(f"10^6 lines: {size / 1e6:.2f} MB in {time.process_time() - begin:.1f} s")
    assert size < PAGE_LIMIT_BYTES
    assert time.process_time() - begin < 60  # reading is the bulk: 10 s on one slow core, with room for a slower one
