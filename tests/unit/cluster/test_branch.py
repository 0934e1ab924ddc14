"""Branches of a run that was never trained: real directories, manifests and datasets, tensor files of any bytes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import build_tiny_dataset, tiny_run

from cluster import branch_directory
from cluster.branch import Branch, plan_branch
from cluster.branch_directory import create_branch
from cluster.checkpoint import find_checkpoint, list_checkpoints, verify
from cluster.checkpoint.manifest import FileRecord, Manifest, Piece, step_directory
from cluster.config import HealingConfig, RunConfig
from cluster.errors import CheckpointError, RunNotFoundError, RunRefusedError, StorageError
from cluster.healing import HEALING
from cluster.run_directory import RunDirectory, config_as_dict
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan
from data_pipeline.publish import file_hashes
from data_pipeline.skip_ledger import SkipLedger
from llm.config import OptimizerConfig

STEP = 4
BATCH = 6
KILLED = 9


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_dataset(tmp_path_factory.mktemp("data"), text_bytes=60_000)


@pytest.fixture(scope="session")
def foreign_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text under another tokenizer."""
    return build_tiny_dataset(tmp_path_factory.mktemp("foreign"), vocab_size=420, text_bytes=60_000)


@pytest.fixture
def parent(tmp_path: Path, dataset: Path) -> RunConfig:
    """A run with checkpoints of steps 4 and 8, two files each."""
    config = tiny_run(tmp_path / "runs", dataset)
    directory = tmp_path / "runs" / "tiny"
    directory.mkdir(parents=True)
    RunDirectory(directory).create(config, "name: tiny\n")
    for step in (STEP, 2 * STEP):
        save(config, step)
    return config


def save(config: RunConfig, step: int, skips: SkipLedger = SkipLedger()) -> None:  # noqa: B008 - immutable
    directory = step_directory(Path(config.storage) / config.name, step)
    (directory / "attempt-00002").mkdir(parents=True)
    files = []
    for rank in range(2):
        path = directory / "attempt-00002" / f"rank-{rank:05d}.safetensors"
        path.write_bytes(bytes([rank + 1]) * 1000)
        hashes = file_hashes(path)
        files.append(FileRecord(f"attempt-00002/{path.name}", hashes.size_bytes, hashes.hash, tuple(hashes.blocks)))
    plan = DataPlan(
        [Dataset.open(entry.path) for entry in config.data.entries], config.data, seed=config.seed, global_batch_size=6
    )
    manifest = Manifest(
        step=step,
        attempt=2,
        created_unix_seconds=1.0,
        next_batch_loss=5.5,
        run={
            "config": config_as_dict(config),
            "data_plan": plan.describe(),
            "skip_ledger": skips.to_json(),
            "layout": {"world_size": 2},
            HEALING: {"skips": skips.to_json(), "withheld": [3, 7], "rollbacks": [], "losses": [6.0, 5.9]},
            "wandb_id": "parents",
        },
        state_names=("master",),
        pieces={
            "weight": tuple(
                Piece(
                    group="decay", shape=(2, 3), offset=3 * n, length=3, file=file.path, scalars={}, states=("master",)
                )
                for n, file in enumerate(files)
            )
        },
        files=tuple(files),
    )
    (directory / "MANIFEST.json").write_bytes(manifest.to_bytes())


def parent_directory(parent: RunConfig) -> Path:
    return Path(parent.storage) / parent.name


def plan_child(parent: RunConfig, step: int = STEP, **changed: Any) -> Branch:
    config = replace(parent, name="child")
    for key, value in changed.items():
        part, _, field = key.partition("__")
        value = replace(getattr(config, part), **{field: value}) if field else value
        config = replace(config, **{part: value})
    return plan_branch(parent_directory(parent), step, config)


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_branch_is_a_run_with_the_parents_state_and_an_identity_of_its_own(parent: RunConfig) -> None:
    branch = plan_child(parent, schedule__name="constant")
    told: list[tuple[int, int]] = []
    directory = create_branch(branch, "name: child\n", lambda done, total: told.append((done, total)))
    facts, theirs = RunDirectory(directory).facts(), RunDirectory(parent_directory(parent)).facts()
    assert facts["id"] != theirs["id"]
    assert facts["wandb"]["id"] != theirs["wandb"]["id"]
    sealed = json.loads((step_directory(parent_directory(parent), STEP) / "MANIFEST.json").read_bytes())
    assert facts["parent"] == {
        "run": theirs["id"],
        "name": "tiny",
        "directory": str(parent_directory(parent)),
        "step": STEP,
        "checkpoint": sealed["checksum"],
        "wandb_id": theirs["wandb"]["id"],
    }
    assert facts["published_step"] == STEP
    assert listing(directory) == ["checkpoints", "config.yaml", "run.json", "tokenizer.model"]
    assert told == [(0, 2000), (1000, 2000), (2000, 2000)]


def test_branch_checkpoint_is_sealed_for_the_child(parent: RunConfig) -> None:
    branch = plan_child(parent, optimizer__learning_rate=1e-4)
    (info,) = list_checkpoints(create_branch(branch, ""))
    verify(info)
    assert info.manifest is not None
    run = info.manifest.run
    assert run["config"] == config_as_dict(branch.config)
    assert run["config"]["optimizer"]["learning_rate"] == 1e-4
    assert run["wandb_id"] == RunDirectory(branch.directory).facts()["wandb"]["id"]
    assert run["branched_from"] == RunDirectory(branch.directory).facts()["parent"]
    assert run["layout"] == {"world_size": 2}
    assert {piece.file for piece in info.manifest.pieces["weight"]} == {file.path for file in info.manifest.files}


def test_tensor_files_are_shared_with_the_parent_when_the_file_system_links(parent: RunConfig) -> None:
    directory = create_branch(plan_child(parent), "")
    theirs = sorted(step_directory(parent_directory(parent), STEP).glob("attempt-*/*"))
    ours = sorted(step_directory(directory, STEP).glob("attempt-*/*"))
    assert all(a.samefile(b) for a, b in zip(theirs, ours, strict=True))
    shutil.rmtree(parent_directory(parent))
    verify(find_checkpoint(directory))


def test_tensor_files_are_copied_when_they_cannot_be_linked(parent: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    directory = create_branch(plan_child(parent), "")
    theirs = sorted(step_directory(parent_directory(parent), STEP).glob("attempt-*/*"))
    ours = sorted(step_directory(directory, STEP).glob("attempt-*/*"))
    assert not any(a.samefile(b) for a, b in zip(theirs, ours, strict=True))
    verify(find_checkpoint(directory))


def test_parent_is_untouched(parent: RunConfig) -> None:
    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in parent_directory(parent).rglob("*") if path.is_file()}

    before = state()
    create_branch(plan_child(parent), "")
    assert state() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model__hidden_size": 64}, "model.hidden_size: 32 -> 64: a checkpoint continues only the model"),
        ({"model__vocab_size": 512}, "the embedding has 400 pieces in .*, and 512 were asked for"),
        ({"train__global_batch_size": 12}, "train.global_batch_size: 6 -> 12: tokens so far"),
        ({"data__seq_len": 64}, "data.seq_len: 32 -> 64: tokens so far"),
        ({"data__begins_after_step": 4}, "data.begins_after_step: 0 -> 4: branch sets it itself"),
        ({"train__max_steps": 4}, "nothing would be left to train. Give a later last step, as in train.max_steps=8"),
    ],
)
def test_branch_is_refused_when_the_state_cannot_serve_it(
    changed: dict[str, Any], message: str, parent: RunConfig
) -> None:
    with pytest.raises(RunRefusedError, match=message):
        plan_child(parent, **changed)


def test_branch_is_refused_when_the_update_rule_changed(parent: RunConfig) -> None:
    with pytest.raises(
        RunRefusedError, match=r"optimizer\.name: 'adamw' -> 'sgd': the saved optimizer state belongs to"
    ):
        plan_child(parent, optimizer=OptimizerConfig(name="sgd"))


def test_branch_is_refused_when_momentum_begins(parent: RunConfig) -> None:
    parent = replace(parent, optimizer=OptimizerConfig(name="sgd", momentum=0.0, nesterov=False))
    shutil.rmtree(step_directory(parent_directory(parent), STEP))
    save(parent, STEP)
    with pytest.raises(RunRefusedError, match=r"optimizer\.momentum: 0\.0 -> 0\.9: without momentum there is no sum"):
        plan_child(parent, optimizer__momentum=0.9)


def test_branch_is_refused_when_the_data_has_another_tokenizer(parent: RunConfig, foreign_dataset: Path) -> None:
    with pytest.raises(RunRefusedError, match=r"their token ids mean different text\. Build the dataset with"):
        plan_child(parent, data__dataset=str(foreign_dataset))


def test_explicit_vocabulary_is_no_change_when_it_is_the_tokenizers(parent: RunConfig) -> None:
    assert plan_child(parent, model__vocab_size=400).next_batch_loss == 5.5


def test_changes_are_told_by_key(parent: RunConfig) -> None:
    branch = plan_child(parent, schedule__name="constant", train__max_steps=20)
    assert list(map(str, branch.changes)) == [
        "schedule.name: 'cosine' -> 'constant'",
        "train.max_steps: 12 -> 20",
    ]
    assert plan_child(parent).changes == ()


def test_data_goes_on_when_a_dataset_only_moved(parent: RunConfig, dataset: Path, tmp_path: Path) -> None:
    branch = plan_child(parent, data__dataset=str(shutil.copytree(dataset, tmp_path / "moved")))
    assert branch.data_changes == ()
    assert branch.next_batch_loss == 5.5
    assert branch.plan.batch_indices(STEP + 1, branch.skips).tolist() == list(range(STEP * BATCH, (STEP + 1) * BATCH))


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"seed": 5}, "seed: 1234 -> 5"), ({"data__document_mask": False}, "data plan document_mask: True -> False")],
)
def test_data_begins_at_its_first_sequence_when_the_order_changed(
    changed: dict[str, Any], named: str, parent: RunConfig
) -> None:
    branch = plan_child(parent, **changed)
    assert list(map(str, branch.data_changes)) == [named]
    assert branch.plan.batch_indices(STEP + 1, branch.skips).tolist() == list(range(BATCH))
    manifest = find_checkpoint(create_branch(branch, "")).manifest
    assert manifest is not None
    assert manifest.next_batch_loss is None
    assert manifest.run["data_position"] == 0
    assert manifest.run["config"]["data"]["begins_after_step"] == STEP
    assert manifest.run[HEALING]["losses"] == []


def test_skips_and_alarms_are_taken_over_when_the_data_goes_on(parent: RunConfig) -> None:
    shutil.rmtree(step_directory(parent_directory(parent), STEP))
    save(parent, STEP, SkipLedger().add(2, 5))
    manifest = find_checkpoint(create_branch(plan_child(parent), "")).manifest
    assert manifest is not None
    assert manifest.run["skip_ledger"] == [[2, 5]]
    assert manifest.run["data_position"] == STEP * BATCH + 3
    assert manifest.run[HEALING] == {"skips": [[2, 5]], "withheld": [3], "rollbacks": [], "losses": [6.0, 5.9]}


def test_skips_are_added_when_they_lie_ahead(parent: RunConfig) -> None:
    later = plan_child(parent, healing=HealingConfig(skip_sequences=((100, 104),)))
    assert later.skips.intervals == ((100, 104),)
    assert later.next_batch_loss == 5.5
    next_ones = plan_child(parent, healing=HealingConfig(skip_sequences=((24, 30),)))
    assert next_ones.next_batch_loss is None
    assert next_ones.plan.batch_indices(STEP + 1, next_ones.skips).tolist() == list(range(30, 36))


def test_skips_are_refused_when_they_lie_behind(parent: RunConfig) -> None:
    with pytest.raises(RunRefusedError, match=r"\[23, 30\], and the branch begins at sequence 24"):
        plan_child(parent, healing=HealingConfig(skip_sequences=((23, 30),)))


def test_inherited_skips_are_dropped_when_the_data_changed(parent: RunConfig) -> None:
    parent = replace(parent, healing=HealingConfig(skip_sequences=((2, 5),)))
    shutil.rmtree(step_directory(parent_directory(parent), STEP))
    save(parent, STEP, SkipLedger().add(2, 5))
    branch = plan_child(parent, seed=7)
    assert branch.skips == SkipLedger()
    assert branch.config.healing.skip_sequences == ()


def test_branch_is_refused_when_its_data_ends_too_early(parent: RunConfig, dataset: Path) -> None:
    entry = {"path": str(dataset), "max_epochs": 1}
    entries = (type(parent.data.entries[0])(**entry),)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"train.max_steps is 100000 .* steps are possible"):
        plan_child(parent, data__dataset=entries, train__max_steps=100_000)


def test_rates_of_the_next_step_are_told_of_parent_and_child(parent: RunConfig) -> None:
    before, after = plan_child(parent, schedule__name="constant").next_rates()
    assert after == parent.optimizer.learning_rate
    assert before < after


def test_usable_steps_are_named_when_the_step_has_no_checkpoint(parent: RunConfig) -> None:
    with pytest.raises(RunNotFoundError, match=r"no usable checkpoint of step 5 \(usable steps: 4, 8\)"):
        plan_child(parent, 5)


@pytest.mark.parametrize("taken", ["run", "directory", "file", "dangling link"])
def test_branch_is_refused_when_its_name_is_taken(taken: str, parent: RunConfig) -> None:
    branch = plan_child(parent)
    if taken == "run":
        create_branch(branch, "")
    elif taken == "directory":
        branch.directory.mkdir()
    elif taken == "file":
        branch.directory.write_bytes(b"")
    else:
        branch.directory.symlink_to("nowhere")
    with pytest.raises(RunRefusedError, match=r"already, and a branch replaces nothing\. Give the branch another NAME"):
        plan_child(parent)
    with pytest.raises(RunRefusedError, match="already, and a branch replaces nothing"):
        create_branch(branch, "")
    assert listing(Path(parent.storage)) == ["child", "tiny"]


def test_nothing_is_made_when_the_checkpoint_is_damaged(parent: RunConfig) -> None:
    path = step_directory(parent_directory(parent), STEP) / "attempt-00002" / "rank-00001.safetensors"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointError, match=rf"checkpoint file {path} was altered.* Branch from another step"):
        create_branch(plan_child(parent), "")
    assert listing(Path(parent.storage)) == ["tiny"]
    assert len([info for info in list_checkpoints(parent_directory(parent)) if info.problem is None]) == 2


def test_nothing_is_made_when_retention_removes_the_checkpoint_meanwhile(parent: RunConfig) -> None:
    branch = plan_child(parent)
    shutil.rmtree(step_directory(parent_directory(parent), STEP))
    with pytest.raises(CheckpointError, match="is gone: the run that it belongs to goes on, and its retention removed"):
        create_branch(branch, "")
    assert listing(Path(parent.storage)) == ["tiny"]


def test_branch_is_whole_when_retention_removes_the_checkpoint_once_it_is_linked(
    parent: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify_late(*arguments: Any) -> None:
        shutil.rmtree(step_directory(parent_directory(parent), STEP), ignore_errors=True)
        verify(*arguments)

    monkeypatch.setattr(branch_directory, "verify", verify_late)
    verify(find_checkpoint(create_branch(plan_child(parent), "")))


def test_nothing_is_made_when_the_storage_is_full(parent: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    branch = plan_child(parent)
    monkeypatch.setattr(branch_directory, "sync_directory", full)
    with pytest.raises(StorageError, match=r"is full .* the branch was not made, and nothing of it is left"):
        create_branch(branch, "")
    assert listing(Path(parent.storage)) == ["tiny"]


@pytest.fixture
def killed(parent: RunConfig) -> Callable[[str], Branch]:
    """Makes a branch in a process that dies where it would call a function of `branch_directory`."""

    def create(at: str) -> Branch:
        branch = plan_child(parent)
        pid = os.fork()
        if pid == 0:
            setattr(branch_directory, at, lambda *_: os._exit(KILLED))
            create_branch(branch, "")
            os._exit(0)  # the moment to die at never came
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == KILLED
        return branch

    return create


@pytest.mark.parametrize("at", ["_link_or_copy", "verify", "write_atomically", "_publish"])
def test_nothing_is_found_and_the_next_branch_cleans_up_when_killed(
    at: str, killed: Callable[[str], Branch], parent: RunConfig
) -> None:
    branch = killed(at)
    assert not branch.directory.exists()
    assert len(listing(Path(parent.storage))) == 2
    create_branch(branch, "")
    assert listing(Path(parent.storage)) == ["child", "tiny"]


def test_another_command_is_left_alone_when_it_is_making_a_branch(
    parent: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(plan_child(parent), config=replace(parent, name="other"))

    def make_the_other_first(*arguments: Any) -> None:
        monkeypatch.undo()
        create_branch(other, "")
        verify(*arguments)

    monkeypatch.setattr(branch_directory, "verify", make_the_other_first)
    create_branch(plan_child(parent), "")
    assert listing(Path(parent.storage)) == ["child", "other", "tiny"]


def test_lineage_goes_back_to_the_first_run_when_a_branch_is_branched(parent: RunConfig) -> None:
    child = plan_child(parent)
    create_branch(child, "")
    grandchild = plan_branch(child.directory, STEP, replace(child.config, name="grandchild"))
    facts = RunDirectory(create_branch(grandchild, "")).facts()
    assert facts["parent"]["name"] == "child"
    assert facts["parent"]["parent"] == RunDirectory(child.directory).facts()["parent"]


def test_data_goes_on_in_a_branch_of_a_branch_with_data_of_its_own(parent: RunConfig) -> None:
    child = plan_child(parent, seed=5)
    create_branch(child, "")
    grandchild = plan_branch(child.directory, STEP, replace(child.config, name="grandchild"))
    assert grandchild.data_changes == ()
    assert grandchild.config.data.begins_after_step == STEP
    assert grandchild.plan.batch_indices(STEP + 1, grandchild.skips).tolist() == list(range(BATCH))
