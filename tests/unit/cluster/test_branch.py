"""What a branch takes over from its parent, what it may change, and what is refused before anything is made."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from branches import BATCH, STEP, parent_directory, plan_child, save
from tiny import build_tiny_dataset

from cluster.branch import plan_branch
from cluster.branch_directory import create_branch
from cluster.checkpoint import find_checkpoint
from cluster.checkpoint.manifest import step_directory
from cluster.config import RunConfig
from cluster.errors import RunNotFoundError, RunRefusedError
from cluster.faults.config import HealingConfig
from cluster.healing import HEALING
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.skip_ledger import SkipLedger
from llm.config import OptimizerConfig


def stages(*ends_and_sizes: tuple[int, int]) -> tuple[BatchSizeStage, ...]:
    return tuple(BatchSizeStage(until_step=end, global_batch_size=size) for end, size in ends_and_sizes)


@pytest.fixture(scope="session")
def foreign_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text under another tokenizer."""
    return build_tiny_dataset(tmp_path_factory.mktemp("foreign"), vocab_size=420, text_bytes=60_000)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model__hidden_size": 64}, "model.hidden_size: 32 -> 64: a checkpoint continues only the model"),
        ({"model__vocab_size": 512}, "the embedding has 400 pieces in .*, and 512 were asked for"),
        (
            {"train__global_batch_size": 12},
            r"train.global_batch_size: 6 -> 12: tokens so far .* sizes of the 4 steps made.*"
            r"'train.batch_size_warmup=\[{until_step: 4, global_batch_size: 6}\]' with a larger",
        ),
        (
            {"train__batch_size_warmup": stages((2, 3))},
            r"train.batch_size_warmup: \[\] -> \[{.*}\]: tokens so far",
        ),
        ({"initialize_from": "/other"}, "initialize_from: None -> '/other': its weights are those that its parent had"),
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


def test_branch_may_compute_its_experts_in_another_way(parent: RunConfig) -> None:
    parent = replace(parent, model=replace(parent.model, num_experts=4))
    shutil.rmtree(step_directory(parent_directory(parent), STEP))
    save(parent, STEP)
    assert [change.key for change in plan_child(parent, model__experts="eager").changes] == ["model.experts"]


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


@pytest.mark.parametrize(("until_step", "next_batch", "loss"), [(4, 12, None), (5, 6, 5.5)])
def test_data_goes_on_when_later_batches_are_larger(
    until_step: int, next_batch: int, loss: float | None, parent: RunConfig
) -> None:
    train = replace(parent.train, global_batch_size=12, batch_size_warmup=stages((until_step, 6)))
    branch = plan_child(parent, train=train)
    assert branch.data_changes == ()
    assert branch.next_batch_loss == loss
    first = STEP * BATCH
    assert branch.plan.batch_indices(STEP + 1, branch.skips).tolist() == list(range(first, first + next_batch))
    assert [change.key for change in branch.changes] == ["train.batch_size_warmup", "train.global_batch_size"]


def test_data_goes_on_when_the_parents_warm_up_is_continued_otherwise(parent: RunConfig) -> None:
    parent = replace(parent, train=replace(parent.train, batch_size_warmup=stages((3, 2), (6, 4))))
    shutil.rmtree(step_directory(parent_directory(parent), STEP))
    save(parent, STEP)
    with pytest.raises(RunRefusedError, match=r"global_batch_size: 2}, {until_step: 4, global_batch_size: 4}\]'"):
        plan_child(parent, train__batch_size_warmup=stages((2, 2), (6, 4)))
    branch = plan_child(parent, train__batch_size_warmup=stages((3, 2), (4, 4)))
    assert branch.plan.batch_indices(STEP + 1, branch.skips).tolist() == list(range(10, 16))
    manifest = find_checkpoint(create_branch(branch, "")).manifest
    assert manifest is not None
    assert manifest.run["data_position"] == 10
    assert manifest.run["data_plan"]["batch_size_warmup"] == [[3, 2], [4, 4]]


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


def test_data_goes_on_in_a_branch_of_a_branch_with_data_of_its_own(parent: RunConfig) -> None:
    child = plan_child(parent, seed=5)
    create_branch(child, "")
    grandchild = plan_branch(child.directory, STEP, replace(child.config, name="grandchild"))
    assert grandchild.data_changes == ()
    assert grandchild.config.data.begins_after_step == STEP
    assert grandchild.plan.batch_indices(STEP + 1, grandchild.skips).tolist() == list(range(BATCH))
