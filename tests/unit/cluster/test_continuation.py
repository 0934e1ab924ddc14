"""What is said of checkpoints that are passed over."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.checkpoint import CheckpointWriter, find_checkpoint, list_checkpoints, reject
from cluster.collectives import Collectives
from cluster.config import CheckpointConfig, RunConfig
from cluster.continuation import Beginning, load_newest
from cluster.engines.protocol import MASTER, Fragment, FragmentState
from cluster.errors import CheckpointError, CheckpointUnreadableError
from cluster.topology import Topology
from data_pipeline.config import DataConfig

REASON = "the loss of step 5 is 3 with the loaded state and was 2 with the saved one"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose one checkpoint was rejected."""
    directory = tmp_path / "run"
    directory.mkdir()
    _save(directory, 4)
    reject(list_checkpoints(directory)[0], REASON, kind="loss")
    return directory


@pytest.fixture
def events_of_attempt(run: Path) -> Callable[[], list[dict[str, Any]]]:
    """Tries to continue the run, which has nothing to continue from, and gives what was posted."""

    def attempt() -> list[dict[str, Any]]:
        posted: list[dict[str, Any]] = []
        with pytest.raises(CheckpointError, match="no checkpoint of run"):
            _continue(run, posted)
        return posted

    return attempt


def _save(run: Path, step: int) -> None:
    writer = CheckpointWriter(run, attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
    writer.save(step, [FragmentState(Fragment("weight", "decay", (3,), 0, 3), {MASTER: torch.zeros(3)}, {})], {})
    writer.next_loss(2.0)
    writer.finish()


def _config(run: Path) -> RunConfig:
    return RunConfig(name=run.name, storage=str(run.parent), data=DataConfig(dataset="unused"))


def _continue(run: Path, posted: list[dict[str, Any]], collectives: Collectives | None = None) -> None:
    unused: Any = None
    load_newest(
        unused,
        unused,
        config=_config(run),
        plan=unused,
        topology=Topology(),
        collectives=collectives or Collectives(),
        post=posted.append,
    )


def _tensors(run: Path, step: int) -> Path:
    info = find_checkpoint(run, step)
    assert info.manifest is not None
    return info.directory / info.manifest.files[0].path


def _scribble(path: Path) -> None:
    """Other bytes, as many as before."""
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))


def _record_event(run: Path, reason: str) -> None:
    row = {"event": "checkpoint_rejected", "step": 4, "reason": reason}
    (run / "events.jsonl").write_text(json.dumps(row) + "\n")


def test_rejection_is_posted_with_its_bare_reason_when_the_record_lacks_it(
    events_of_attempt: Callable[[], list[dict[str, Any]]],
) -> None:
    assert events_of_attempt() == [
        {"type": "event", "event": "checkpoint_rejected", "step": 4, "reason": REASON},
    ]


def test_rejection_is_not_posted_again_when_the_record_has_it(
    run: Path, events_of_attempt: Callable[[], list[dict[str, Any]]]
) -> None:
    _record_event(run, REASON)
    assert events_of_attempt() == []


def test_rejection_is_posted_when_the_record_has_only_an_earlier_one_of_the_step(
    run: Path, events_of_attempt: Callable[[], list[dict[str, Any]]]
) -> None:
    _record_event(run, "a file was cut short")
    assert len(events_of_attempt()) == 1


class _WithAnotherRank(Collectives):
    """Of two ranks, the other one having found damage."""

    def first_error(self, error: str | None) -> str | None:
        """The other rank's, where it is asked for first."""
        return error if error is not None else "a byte was flipped"


def _refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Any:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("cluster.checkpoint.catalog.file_hashes", refuse)


def test_attempt_ends_and_rejects_nothing_when_the_newest_checkpoint_cannot_be_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (6, 8):
        _save(run, step)
    _refuse_to_read(monkeypatch)
    posted: list[dict[str, Any]] = []
    with pytest.raises(CheckpointUnreadableError, match=r"^rank 0: .*step-00000008/.* on node .*: Permission denied\."):
        _continue(run, posted)
    assert posted == []
    assert [info.step for info in list_checkpoints(run) if info.problem is None] == [6, 8]


def test_attempt_ends_when_the_newest_checkpoint_cannot_even_be_measured(run: Path) -> None:
    for step in (6, 8):
        _save(run, step)
    path = _tensors(run, 8)
    path.rename(path.with_name("kept"))
    path.symlink_to(path.name)
    with pytest.raises(CheckpointUnreadableError, match=r"^rank 0: .*step-00000008/.*symbolic links"):
        _continue(run, [])


def test_checkpoint_is_rejected_when_one_rank_has_proven_damage_and_another_cannot_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(run, 6)
    _refuse_to_read(monkeypatch)
    posted: list[dict[str, Any]] = []
    with pytest.raises(CheckpointError, match="no checkpoint of run"):
        _continue(run, posted, _WithAnotherRank())
    assert [(row["step"], row["reason"]) for row in posted] == [(6, "a byte was flipped")]


def test_checkpoints_before_are_looked_at_when_a_rejection_cannot_be_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (6, 8):
        _save(run, step)
        _scribble(_tensors(run, step))

    def read_only(path: Path, data: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("cluster.checkpoint.catalog.write_atomically", read_only)
    posted: list[dict[str, Any]] = []
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError, match="no checkpoint of run"):
        _continue(run, posted)
    assert [row["step"] for row in posted] == [8, 6]
    assert "step-00000008 is passed over and could not be marked as rejected: Read-only" in caplog.messages[0]


def test_manifest_is_passed_over_when_its_superseded_attempt_came_after_its_files_were_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Attempt 1 was killed as it published, too late: attempt 2 had removed its files, and no checkpoint is lost."""
    caplog.set_level(logging.INFO)
    directory, initial = tmp_path / "run", object()
    directory.mkdir()
    _save(directory, 4)
    _tensors(directory, 4).unlink()
    (directory / "checkpoints" / "step-00000004" / "attempt-00001").rmdir()
    loaded, posted = _begin(directory, initial, attempt=2)
    assert (loaded, posted) == ([initial], [])
    assert any("its files are gone" in message for message in caplog.messages)


def test_run_ends_when_a_file_of_its_only_checkpoint_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    _save(directory, 4)
    _tensors(directory, 4).unlink()
    with pytest.raises(CheckpointError, match="no checkpoint of run"):
        _begin(directory, object(), attempt=2)  # the directory is there: a file of it is missing


def _begin(directory: Path, initial: object, *, attempt: int) -> tuple[list[object], list[dict[str, Any]]]:
    """What an attempt loads, and posts."""
    (directory / "run.json").write_text(json.dumps({"attempt": attempt}))
    loaded: list[object] = []
    posted: list[dict[str, Any]] = []
    engine: Any = SimpleNamespace(load=loaded.append)
    state: Any = initial
    unused: Any = None
    load_newest(
        engine,
        lambda facts: Beginning(state),
        config=_config(directory),
        plan=unused,
        topology=Topology(),
        collectives=Collectives(),
        post=posted.append,
    )
    return loaded, posted
