from __future__ import annotations

import http.server
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import TrackingError
from cluster.record import wandb_mirror
from cluster.record.wandb_mirror import TrackingSettings, WandbMirror, announce_failure, check_reachable

OFFLINE = TrackingSettings(mode="offline", project="test", run_id="abcd1234", name="run")


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no W&B process to end in these tests."""
    monkeypatch.setattr(wandb_mirror, "_end_process", lambda: None)


def test_mirror_is_started_again_and_then_ends_when_tracking_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = []

    def fail(self: WandbMirror) -> None:
        starts.append(1)
        raise RuntimeError("the tracker broke")

    monkeypatch.setattr(wandb_mirror, "_START_AGAIN_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(WandbMirror, "_follow", fail)
    mirror = WandbMirror(OFFLINE, tmp_path, attempt=1)
    mirror.wake()
    mirror.close("finished", timeout_seconds=5)
    assert len(starts) == 3
    assert "metrics.jsonl goes on and is the record" in caplog.text


def test_mirror_returns_at_once_when_tracking_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(WandbMirror, "_follow", lambda self: released.wait())
    mirror = WandbMirror(OFFLINE, tmp_path, attempt=1)
    for _ in range(1000):
        mirror.wake()
    mirror.close("finished", timeout_seconds=0.1)
    released.set()
    assert "W&B did not finish within 0 s" in caplog.text


def test_next_mirror_begins_when_the_one_that_was_left_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_mirror, "_FINISH_SECONDS", 0.05)
    released, second_began = threading.Event(), threading.Event()

    def follow(mirror: WandbMirror) -> None:
        if mirror is first:
            released.wait()
        else:
            second_began.set()

    monkeypatch.setattr(WandbMirror, "_follow", follow)
    first = WandbMirror(OFFLINE, tmp_path, attempt=1)
    first.leave("stopped")  # would not return if it waited
    second = WandbMirror(OFFLINE, tmp_path, attempt=2, before=first)
    assert not second_began.wait(0.2)
    released.set()
    assert second_began.wait(5)
    assert "this one is shown there once it has" in caplog.text
    second.close("finished", timeout_seconds=5)


def test_mirror_gives_up_when_the_one_that_was_left_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(WandbMirror, "_follow", lambda self: released.wait())
    first = WandbMirror(OFFLINE, tmp_path, attempt=1)
    first.leave("stopped")
    WandbMirror(OFFLINE, tmp_path, attempt=2, before=first).close("finished", timeout_seconds=0.1)
    released.set()
    assert "W&B did not finish within 0 s" in caplog.text


def test_tables_are_staged_with_the_mirror_that_follows_when_a_process_has_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    monkeypatch.setattr(wandb_mirror, "_STAGED_IN", set())
    for name in ("first", "second"):
        wandb_mirror._stage_in(tmp_path / name)
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / name)
    monkeypatch.setenv("WANDB_DATA_DIR", "/chosen")
    wandb_mirror._stage_in(tmp_path / "third")
    assert os.environ["WANDB_DATA_DIR"] == "/chosen"


def test_announcement_does_nothing_when_tracking_is_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(method: str) -> Any:
        raise AssertionError("a process was started")

    monkeypatch.setattr("multiprocessing.get_context", refuse)
    disabled = TrackingSettings(mode="disabled", project="test", run_id="abcd1234", name="run")
    announce_failure(disabled, tmp_path, "text")


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
