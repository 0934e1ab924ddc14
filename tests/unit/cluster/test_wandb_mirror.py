from __future__ import annotations

import http.server
import math
import threading
from pathlib import Path

import pytest

from cluster.errors import TrackingError
from cluster.wandb_mirror import TrackingSettings, WandbMirror, check_reachable, history_row

OFFLINE = TrackingSettings(mode="offline", project="test", run_id="abcd1234", name="run")
ROW = {"kind": "train", "step": 3, "attempt": 1, "train/loss": 2.0, "train/perplexity": math.exp(2.0)}


def test_history_row_has_its_own_step_axis() -> None:
    assert history_row(ROW, several_datasets=False) == {
        "train/step": 3,
        "attempt": 1,
        "train/loss": 2.0,
        "train/perplexity": math.exp(2.0),
    }


def test_history_row_shows_numbers_that_are_not_finite() -> None:
    row = history_row({**ROW, "train/loss": None, "nonfinite": ["train/loss"]}, several_datasets=False)
    assert math.isnan(row["train/loss"])


def test_history_row_names_the_dataset_when_there_are_several() -> None:
    row = {"kind": "eval", "step": 3, "name": "books", "eval/loss": 2.0}
    assert history_row(row, several_datasets=False) == {"train/step": 3, "eval/loss": 2.0}
    assert history_row(row, several_datasets=True) == {"train/step": 3, "eval/books/loss": 2.0}


def test_mirror_takes_rows_and_ends_when_tracking_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: WandbMirror) -> None:
        raise RuntimeError("the tracker broke")

    monkeypatch.setattr(WandbMirror, "_start", fail)
    mirror = WandbMirror(OFFLINE, tmp_path / "wandb", config={}, record=[], several_datasets=False)
    mirror.put(ROW)
    mirror.close(timeout_seconds=5)
    assert "metrics.jsonl goes on and is the record" in caplog.text


def test_mirror_returns_at_once_when_tracking_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(WandbMirror, "_start", lambda self: released.wait())
    mirror = WandbMirror(OFFLINE, tmp_path / "wandb", config={}, record=[], several_datasets=False)
    for _ in range(1000):
        mirror.put(ROW)
    mirror.close(timeout_seconds=0.1)
    released.set()


def test_server_is_reachable_when_it_answers_anything() -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # answers 501 to all
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        check_reachable(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_server_is_refused_when_nothing_listens() -> None:
    with pytest.raises(TrackingError, match=r"wandb\.mode is online, and http://127\.0\.0\.1:9 cannot be reached"):
        check_reachable("http://127.0.0.1:9")
