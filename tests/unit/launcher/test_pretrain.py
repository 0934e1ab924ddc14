"""What `pretrain` says when it ends."""

from __future__ import annotations

from pathlib import Path

from cluster.resume import Change
from launcher.commands.pretrain import _goodput, _in_vain


def test_goodput_is_told_as_not_known_when_the_record_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "discarded.jsonl").write_text("{\n")
    assert _goodput(tmp_path).startswith(f"goodput n/a: {tmp_path / 'discarded.jsonl'}, line 1 is not JSON")


def test_goodput_is_one_line_when_the_record_is_whole(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(
        '{"event": "started", "time_unix_seconds": 10}\n{"event": "finished", "time_unix_seconds": 70}\n'
    )
    assert _goodput(tmp_path) == "goodput n/a of 0:01:00: no step of the record says what its time was spent on"


def test_what_a_finished_run_was_asked_in_vain_is_named_with_the_ways_to_have_it() -> None:
    said = _in_vain([Change("train.log_every_steps", 10, 5), Change("evaluation.prompts", [], ["It was"])])
    assert said == (
        "not applied, since no step is left to make: train.log_every_steps=5 (10 in the run), "
        'evaluation.prompts=["It was"] ([] in the run). To train with it give the run another name (name=NAME) or pass '
        "--fresh; `branch RUN --from STEP NAME` begins with the state of an earlier step."
    )
