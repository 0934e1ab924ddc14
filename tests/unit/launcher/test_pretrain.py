"""What `pretrain` says when it ends."""

from __future__ import annotations

from pathlib import Path

from launcher.commands.pretrain import _goodput


def test_goodput_is_told_as_not_known_when_the_record_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "discarded.jsonl").write_text("{\n")
    assert _goodput(tmp_path).startswith(f"goodput n/a: {tmp_path / 'discarded.jsonl'}, line 1 is not JSON")


def test_goodput_is_one_line_when_the_record_is_whole(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(
        '{"event": "started", "time_unix_seconds": 10}\n{"event": "finished", "time_unix_seconds": 70}\n'
    )
    assert _goodput(tmp_path) == "goodput n/a of 0:01:00: no step of the record says what its time was spent on"
