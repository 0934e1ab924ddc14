"""The page as a file: written where it belongs or not at all, whole in itself, harmless, small."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from example_run import FACTS, write_example_run, write_lines
from report_page import Page, data_of, report_of

from launcher.report import write_report

HOSTILE = "</script><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)> & \" $title"
PAGE_LIMIT_BYTES = 5_000_000


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


def test_page_escapes_every_text_of_the_run(run: Path) -> None:
    (run / "run.json").write_text(
        json.dumps({"name": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}, "baseline": FACTS["baseline"] | {"name": HOSTILE}})
    )
    (run / "config.yaml").write_text(f"{HOSTILE}: {HOSTILE}\n- {HOSTILE}\n")
    write_lines(run / "samples.jsonl", [{"step": 1, "prompt": HOSTILE, "text": HOSTILE + HOSTILE}])
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(
            json.dumps({"kind": "eval", "step": 7, "name": HOSTILE, "eval/loss": 1, f"eval/{HOSTILE}": 2}) + "\n"
        )
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps({"event": HOSTILE, "step": 7, "reason": HOSTILE}) + "\n")
    checkpoint = run / "checkpoints" / "step-00000001 <b>"
    checkpoint.mkdir()
    (checkpoint / "MANIFEST.json").write_text(json.dumps({"topology": {HOSTILE: HOSTILE}}))
    html = report_of(run)
    page = Page(html)
    assert page.count("script") == 2
    assert page.count("img") == 0
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert "step-00000001 <b>" in page.texts
    assert any(mark["title"].startswith("</script>") for mark in data_of(html)["events"])


def test_page_loads_nothing_from_elsewhere(run: Path) -> None:
    html = report_of(run)
    page = Page(html)
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "poster"):
            assert re.fullmatch(r"|#[\w-]+", attributes.get(name) or "")
    assert page.count("link") == 0
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", html)
    assert "default-src 'none'" in html


def test_page_keeps_the_licence_of_what_it_embeds(run: Path) -> None:
    assert "Copyright (c) 2022 Leon Sorokin" in report_of(run)


@pytest.mark.slow
def test_report_of_a_million_logged_steps_is_small_and_quick(tmp_path: Path) -> None:
    run = write_example_run(tmp_path / "long", steps=1_000_000, log_every=1)
    begin = time.process_time()
    size = write_report(run).stat().st_size
    print(f"10^6 lines: {size / 1e6:.2f} MB in {time.process_time() - begin:.1f} s")
    assert size < PAGE_LIMIT_BYTES
    assert time.process_time() - begin < 60  # reading is the bulk: 10 s on one slow core, with room for a slower one
