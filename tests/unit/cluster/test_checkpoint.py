from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import SHAPE, WHOLE, save, states
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cluster.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    WriterHooks,
    catalog,
    clean_leftovers,
    find_checkpoint,
    list_checkpoints,
    newest_verified,
    reject,
    verify,
    writer,
)
from cluster.config import CheckpointConfig
from cluster.engines.protocol import MASTER, Fragment
from cluster.errors import CheckpointError, RunNotFoundError, StorageError


@given(
    cuts=st.lists(st.integers(1, 34), min_size=0, max_size=4, unique=True),
    offset=st.integers(0, 34),
    length=st.integers(1, 35),
)
def test_reader_gives_any_fragment_when_written_by_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], offset: int, length: int
) -> None:
    directory = tmp_path_factory.mktemp("run")
    save(directory, 1, cuts=(0, *sorted(cuts), 35))
    info = find_checkpoint(directory)
    assert info.manifest is not None
    reader = CheckpointReader(info.directory, info.manifest)
    fragment = Fragment("weight", "decay", SHAPE, offset, min(length, 35 - offset))
    expected = WHOLE[offset : offset + fragment.length]
    assert torch.equal(reader.read(fragment, MASTER), expected)
    assert torch.equal(reader.read(fragment, "exp_avg"), expected * 2)
    assert reader.scalars("weight") == {"step": 3.0}
    assert reader.tensor_names("weight") == ("exp_avg",)


def test_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (first, second) = sorted((find_checkpoint(tmp_path).directory / "attempt-00001").iterdir())
    for path, part in ((first, WHOLE[:12]), (second, WHOLE[12:])):
        tensors = load_file(path)
        assert sorted(tensors) == ["exp_avg:weight", "master:weight"]
        assert torch.equal(tensors["master:weight"], part)
        assert torch.equal(tensors["exp_avg:weight"], part * 2)


def test_reader_refuses_a_parameter_when_its_shape_differs(tmp_path: Path) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    assert info.manifest is not None
    with pytest.raises(CheckpointError, match=r"with shape \[7, 5\], and the model has \[5, 7\]"):
        CheckpointReader(info.directory, info.manifest).read(Fragment("weight", "decay", (5, 7), 0, 35), MASTER)


def test_checkpoint_is_not_found_when_a_rank_did_not_hand_in_its_part(tmp_path: Path) -> None:
    part = CheckpointWriter(
        tmp_path, attempt=1, rank=0, world_size=2, policy=CheckpointConfig(), other_ranks_timeout_seconds=0.1
    )
    part.save(1, states(0, 12), {})
    part.next_loss(1.0)
    with pytest.raises(StorageError, match=r"rank 1 did not hand in its part within 0\.1 s"):
        part.finish()
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(RunNotFoundError, match="has no usable checkpoint"):
        find_checkpoint(tmp_path)


_FILL = """
import resource, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from checkpoints import states
from cluster.checkpoint import CheckpointWriter
from cluster.config import CheckpointConfig
from cluster.errors import StorageError
writer = CheckpointWriter(Path({run!r}), attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
writer.save(1, states(0, 35), {{}})
writer.finish()
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # no file may grow past 200 bytes: a real error of the system
writer.save(2, states(0, 35), {{}})
try:
    {then}
except StorageError as error:
    print(error)
"""


def fill_up(run: Path, then: str) -> str:
    """Save with no room, in a process of its own; what it printed."""
    here = Path(__file__).parent
    script = _FILL.format(
        root=str(here.parents[2]), tests=str(here.parents[1] / "integration"), run=str(run), then=then
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_storage_error_names_the_remedy_and_leaves_nothing_when_there_is_no_room(tmp_path: Path) -> None:
    printed = fill_up(tmp_path, "writer.finish()")
    assert "the checkpoint of step 2 could not be written to" in printed
    assert "File too large. Earlier checkpoints are whole. Make room" in printed
    assert not list((tmp_path / "checkpoints" / "step-00000002").glob("attempt-*"))
    assert find_checkpoint(tmp_path).step == 1


def test_run_goes_on_when_one_checkpoint_could_not_be_written_but_not_when_two_could_not(tmp_path: Path) -> None:
    save_again = "writer.save(3, states(0, 35), {}); print('went on'); writer.save(4, states(0, 35), {})"
    printed = fill_up(tmp_path, save_again)
    assert printed.startswith("went on\nthe checkpoint of step 3 could not be written")


def test_explanation_says_that_the_storage_is_full_in_plain_words() -> None:
    assert writer._explain(OSError(errno.ENOSPC, "x")) == "the storage is full"
    assert writer._explain(OSError(errno.EDQUOT, "x")) == "the storage is full"
    assert writer._explain(OSError(errno.EACCES, os.strerror(errno.EACCES), "x")) == "Permission denied"


def test_published_checkpoint_stays_when_retention_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    save(tmp_path, 1, policy=CheckpointConfig(keep_last=1))
    monkeypatch.setattr(catalog, "delete", refuse)
    save(tmp_path, 2, policy=CheckpointConfig(keep_last=1))
    monkeypatch.undo()
    verify(find_checkpoint(tmp_path, 2))


def test_checkpoint_is_published_without_a_next_loss_when_that_is_not_finite(tmp_path: Path) -> None:
    part = CheckpointWriter(tmp_path, attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
    part.save(1, states(0, 35), {})
    part.next_loss(float("nan"))
    part.finish()
    manifest = find_checkpoint(tmp_path).manifest
    assert manifest is not None
    assert manifest.next_batch_loss is None


def test_retention_does_not_count_on_a_checkpoint_that_was_rejected(tmp_path: Path) -> None:
    save(tmp_path, 1, policy=CheckpointConfig(keep_last=1))
    save(tmp_path, 4, policy=CheckpointConfig(keep_last=2))
    reject(list_checkpoints(tmp_path)[-1], "a byte was flipped", kind="damage")
    save(tmp_path, 3, policy=CheckpointConfig(keep_last=1))
    assert [info.step for info in list_checkpoints(tmp_path) if info.problem is None] == [3]
    save(tmp_path, 5, policy=CheckpointConfig(keep_last=1))
    assert [info.step for info in list_checkpoints(tmp_path)] == [5]


def test_newest_verified_passes_over_damage_and_remembers_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    info = list_checkpoints(tmp_path)[-1]
    assert info.manifest is not None
    path = info.directory / info.manifest.files[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = newest_verified(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "was altered" in str(list_checkpoints(tmp_path)[-1].problem)


def test_old_checkpoints_are_deleted_when_more_than_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, policy=CheckpointConfig(keep_last=2))
    assert [info.step for info in list_checkpoints(tmp_path)] == [3, 4]


def test_rejected_checkpoint_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    reject(list_checkpoints(tmp_path)[-1], "it gave another loss", kind="loss")
    assert find_checkpoint(tmp_path).step == 1
    assert list_checkpoints(tmp_path)[-1].problem == (
        f"checkpoint {tmp_path / 'checkpoints' / 'step-00000002'} was rejected: it gave another loss"
    )


def test_rejection_is_forgotten_when_the_step_is_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    reject(list_checkpoints(tmp_path)[-1], "it gave another loss", kind="loss")
    save(tmp_path, 1)
    assert find_checkpoint(tmp_path).step == 1


def test_files_of_an_earlier_attempt_go_when_the_step_is_saved_again(tmp_path: Path) -> None:
    for attempt in (1, 3):
        save(tmp_path, 1, attempt=attempt)
    begun_later = tmp_path / "checkpoints" / "step-00000001" / "attempt-00004"
    begun_later.mkdir()
    save(tmp_path, 1, attempt=3)
    found = find_checkpoint(tmp_path)
    verify(found)
    names = sorted(child.name for child in found.directory.iterdir())
    assert names == ["MANIFEST.json", "attempt-00003", "attempt-00004"]


def test_leftovers_are_removed_and_published_files_kept_when_cleaning(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for torn in ("step-00000001/attempt-00002", "step-00000009/attempt-00001"):
        (tmp_path / "checkpoints" / torn).mkdir(parents=True)
    removed = clean_leftovers(tmp_path, attempt=3)
    assert len(removed) == 2
    assert not (tmp_path / "checkpoints" / "step-00000009").exists()
    verify(find_checkpoint(tmp_path))


def test_metrics_are_made_durable_before_the_manifest_is_published(tmp_path: Path) -> None:
    seen = []
    save(tmp_path, 1, cuts=(0, 35), hooks=WriterHooks(before_publish=lambda: seen.append(list_checkpoints(tmp_path))))
    assert seen == [[]]
    assert len(list_checkpoints(tmp_path)) == 1


def test_checkpoint_asked_for_by_step_is_refused_with_its_problem(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    reject(list_checkpoints(tmp_path)[-1], "a byte was flipped", kind="damage")
    with pytest.raises(CheckpointError, match=r"was rejected: a byte was flipped Usable steps: \[1\]\."):
        find_checkpoint(tmp_path, 2)
