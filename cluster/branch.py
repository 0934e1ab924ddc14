"""What a branch is: a child run that begins with the state its parent had at a step, and goes its own way from there.

Here is decided whether the child can take that state, and with which batches it goes on; `branch_directory` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.checkpoint import CheckpointInfo, Manifest, find_checkpoint
from cluster.checkpoint.manifest import MANIFEST_NAME
from cluster.config import RunConfig
from cluster.errors import CheckpointError, RunNotFoundError, RunRefusedError
from cluster.resolution import open_plan, resolve_model
from cluster.resume import Change, changes, completed
from cluster.run_directory import RUN_NAME, RunDirectory, config_as_dict
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, list_names, storage_path
from cluster.tasks import LABELS, labels_as_dict, learns_labels
from data_pipeline.batch_sizes import BatchSizes, BatchSizeStage
from data_pipeline.plan import DataPlan
from data_pipeline.skip_ledger import SkipLedger
from llm.config import ModelConfig, ScheduleConfig
from llm.schedule import learning_rate

BRANCHED_FROM = "branched_from"
"""Key in a manifest's `run` part: what the checkpoint was taken over from."""
PARENT = "parent"
"""Key in run.json: the same, for the whole run."""
_OPTIMIZER_MAY_CHANGE = (
    "learning_rate",
    "weight_decay",
    "betas",
    "eps",
    "momentum",
    "nesterov",
    "ns_steps",
    "learning_rate_adjustment",
    "gradient_clip_norm",
)
"""What an optimizer applies, as against what it keeps."""
CLAIM_NAME = "branching.json"
"""In an object store, where nothing is renamed: what a branch is called whose run.json is not there yet."""
LEASE_NAME = "lease"
"""Where `cluster.lease` keeps its files: what lies there says nothing of a run."""
_MODEL_MAY_CHANGE = ("attention", "experts")
_BATCH_SIZES = ("global_batch_size", "batch_size_warmup")
"""Fields of `train`, and of a data plan, that say how many sequences each step takes."""
_REFUSED = {
    "task": "what is learned would be other targets; begin a run with `initialize_from` instead",
    "initialize_from": "its weights are those that its parent had",
    "data.seq_len": "tokens so far and the place in the data are counted in sequences of one length",
    "data.begins_after_step": "branch sets it itself, where the data changes",
}


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A child run that can be made."""

    config: RunConfig
    """The child's configuration, complete; paths absolute."""
    info: CheckpointInfo
    """The parent's checkpoint that it begins with."""
    manifest: Manifest
    """Of that checkpoint."""
    lineage: Mapping[str, Any]
    """What the child's run.json says of its parent."""
    plan: DataPlan
    skips: SkipLedger
    next_batch_loss: float | None
    """None where the parent knew none, or the child's next batch is another."""
    changes: tuple[Change, ...]
    """What the child has otherwise than its parent, name and storage apart."""
    data_changes: tuple[Change, ...]
    """Why the child's data begins at its first sequence; empty where it goes on from the parent's position."""

    @property
    def directory(self) -> StoragePath:
        """Where the child will be."""
        return storage_path(self.config.storage) / self.config.name

    @property
    def step(self) -> int:
        """Step whose state the child begins with."""
        return self.manifest.step

    def next_rates(self) -> tuple[float, float]:
        """Learning rate of the next step, in the parent and in the child."""
        before = completed(self.manifest.run["config"])
        child = self.config
        return (
            learning_rate(
                self.step + 1,
                ScheduleConfig(**before["schedule"]),
                before["optimizer"]["learning_rate"],
                before["train"]["max_steps"],
            ),
            learning_rate(self.step + 1, child.schedule, child.optimizer.learning_rate, child.train.max_steps),
        )


def plan_branch(parent: StoragePath, step: int, config: RunConfig) -> Branch:
    """Check that a run can begin with the state that its parent had at a step, and settle its data. Changes nothing.

    Args:
        parent: Directory of the parent run, which may be running.
        step: Step of one of its checkpoints.
        config: What the child is to be; paths absolute.

    Raises:
        RunNotFoundError: There is no such run or checkpoint.
        CheckpointError: The checkpoint cannot be used.
        RunRefusedError: The child's name is taken, or it cannot take over the state.
        data_pipeline.errors.DataError: Its data cannot be used.
    """
    refuse_taken_name(storage_path(config.storage) / config.name)
    if not RunDirectory(parent).exists():
        raise RunNotFoundError(f"{parent} is no run: it has no run.json. Name the directory of a run, storage/name.")
    info = find_checkpoint(parent, step)
    assert info.manifest is not None
    manifest = info.manifest
    before = completed(manifest.run["config"])
    found = _named(changes(before, config_as_dict(config)), config)
    sizes_before = _batch_sizes(before)
    _refuse(found, step, kept=sizes_before.stages_through(step), asked=config.train.batch_sizes.stages_through(step))
    if config.train.max_steps <= step:
        raise RunRefusedError(
            f"train.max_steps is {config.train.max_steps}, and the branch begins after step {step}: nothing would be "
            f"left to train. Give a later last step, as in train.max_steps={2 * step}, or branch from an earlier step."
        )
    plan = open_plan(config)
    _check_tokenizer_and_model(before, manifest, config, plan, parent)
    _check_labels(manifest, config, plan, parent)
    data_changes = _data_changes(before, manifest, config, plan)
    inherited, known = SkipLedger.from_json(manifest.run["skip_ledger"]), before["healing"]["skip_sequences"]
    if data_changes:
        config = _with_new_data(config, known, step)
        plan = open_plan(config)
        inherited, known = SkipLedger(), []
    added = [item for item in config.healing.skip_sequences if list(item) not in known]
    skips = _with_skips(inherited, added, position=plan.position_after(step, inherited))
    plan.check_steps(config.train.max_steps, skips)
    unchanged = (
        not data_changes
        and plan.batch_sizes.at(step + 1) == sizes_before.at(step + 1)
        and np.array_equal(plan.batch_indices(step + 1, inherited), plan.batch_indices(step + 1, skips))
    )
    return Branch(
        config=config,
        info=info,
        manifest=manifest,
        lineage=_lineage(parent, info),
        plan=plan,
        skips=skips,
        next_batch_loss=manifest.next_batch_loss if unchanged else None,
        changes=tuple(found),
        data_changes=data_changes,
    )


def refuse_taken_name(directory: StoragePath) -> None:
    """Refuse a name under which there is something already, other than what a branch that was not finished has left.

    Raises:
        RunRefusedError: There is.
    """
    if isinstance(directory, ObjectPath):
        there = [name for name in _names_in(directory) if name != LEASE_NAME]
        taken, run = bool(there) and (RUN_NAME in there or CLAIM_NAME not in there), RUN_NAME in there
    else:
        taken, run = directory.exists() or directory.is_symlink(), RunDirectory(directory).exists()
    if taken:
        what = "a run" if run else "something"
        raise RunRefusedError(
            f"{directory} is {what} already, and a branch replaces nothing. Give the branch another NAME, or another "
            "storage=DIRECTORY."
        )


def _names_in(directory: ObjectPath) -> list[str]:
    try:
        return list_names(directory)
    except FileNotFoundError:
        return []


def _batch_sizes(document: Mapping[str, Any]) -> BatchSizes:
    """Those of a complete configuration as plain values."""
    train = document["train"]
    stages = (BatchSizeStage(**stage) for stage in train["batch_size_warmup"])
    return BatchSizes(train["global_batch_size"], tuple(stages))


def _named(found: list[Change], config: RunConfig) -> list[Change]:
    """The changes that a person would name: not the run's place, and no key that only an older release knew."""
    after = config_as_dict(config)
    return [change for change in found if change.key not in ("name", "storage") and _has(after, change.key.split("."))]


def _has(document: Any, keys: list[str]) -> bool:
    if not keys:
        return True
    return isinstance(document, Mapping) and keys[0] in document and _has(document[keys[0]], keys[1:])


def _refuse(
    found: list[Change], step: int, *, kept: tuple[BatchSizeStage, ...], asked: tuple[BatchSizeStage, ...]
) -> None:
    """Refuse what the state cannot serve; the sizes of later batches are the branch's own affair."""
    refused = [f"{change}: {reason}" for change in found if (reason := _why_refused(change)) is not None]
    if kept != asked:
        stages = ", ".join(
            f"{{until_step: {each.until_step}, global_batch_size: {each.global_batch_size}}}" for each in kept
        )
        reason = (
            f"tokens so far and the place in the data are counted from the sizes of the {step} steps made. A branch "
            f"keeps these and changes later ones, as in 'train.batch_size_warmup=[{stages}]' with a larger "
            "train.global_batch_size"
        )
        sizes = [change for change in found if change.key in (f"train.{name}" for name in _BATCH_SIZES)]
        refused += [f"{change}: {reason}" for change in sizes]
    if refused:
        listing = "\n  ".join(refused)
        raise RunRefusedError(
            f"a branch goes on with the state of step {step}, which cannot serve this:\n  {listing}\n"
            "Leave it out of the branch, or train another run from the start."
        )


def _why_refused(change: Change) -> str | None:
    section, _, name = change.key.partition(".")
    if section == "model" and name not in (*_MODEL_MAY_CHANGE, "vocab_size"):  # the size is compared as resolved
        return "a checkpoint continues only the model that wrote it"
    if section == "optimizer" and name not in _OPTIMIZER_MAY_CHANGE:
        return "the saved optimizer state belongs to the update rule that made it"
    if change.key == "optimizer.momentum" and 0 in (change.before, change.after):
        return "without momentum there is no sum of gradients to go on with"
    return _REFUSED.get(change.key)


def _check_tokenizer_and_model(
    before: Mapping[str, Any], manifest: Manifest, config: RunConfig, plan: DataPlan, parent: StoragePath
) -> None:
    dataset, wanted = plan.datasets[0], manifest.run["data_plan"]["tokenizer"]
    if dataset.tokenizer_hash != wanted:
        raise RunRefusedError(
            f"data.dataset: {dataset.directory} was built with tokenizer {dataset.tokenizer_hash}, and {parent} was "
            f"trained with {wanted}: their token ids mean different text. Build the dataset with "
            f"`tokenizer: {{path: {parent / 'tokenizer.model'}}}`."
        )
    was = resolve_model(ModelConfig.from_json(before["model"]), dataset.vocab_size)
    now = resolve_model(config.model, dataset.vocab_size)
    if was.vocab_size != now.vocab_size:
        raise RunRefusedError(
            f"model.vocab_size: the embedding has {was.vocab_size} pieces in {parent}, and {now.vocab_size} were asked "
            "for: a checkpoint continues only the model that wrote it. Leave model.vocab_size as it is."
        )


def _check_labels(manifest: Manifest, config: RunConfig, plan: DataPlan, parent: StoragePath) -> None:
    """Refuse data whose labels mean something else than the outputs of the parent's head."""
    if not learns_labels(config.task):
        return
    dataset, learned = plan.datasets[0], manifest.run[LABELS]
    if labels_as_dict(dataset.labels) != learned:
        raise RunRefusedError(
            f"data.dataset: {dataset.directory} is labelled with {dataset.labels.kind} {list(dataset.labels.names)}, "
            f"and {parent} learned {learned['kind']} {learned['names']}: the outputs of its head mean something else. "
            "Build the dataset with the same `labels.names`, or begin a run with `initialize_from`, which makes a new "
            "head."
        )


def _data_changes(
    before: Mapping[str, Any], manifest: Manifest, config: RunConfig, plan: DataPlan
) -> tuple[Change, ...]:
    """How the child's order of sequences differs from its parent's; a dataset that only moved makes no difference.

    Nor do other sizes of later batches: they cut the same order into other steps.
    """
    found = [
        change
        for change in changes(manifest.run["data_plan"], plan.describe(), "data plan ")
        if change.key.removeprefix("data plan ") not in _BATCH_SIZES
    ]
    if before["seed"] != config.seed:
        found.append(Change("seed", before["seed"], config.seed))
    return tuple(found)


def _with_new_data(config: RunConfig, inherited_skips: list[list[int]], step: int) -> RunConfig:
    """Data that begins at its first sequence, without skips that were meant for other data."""
    config = replace(config, data=replace(config.data, begins_after_step=step))
    if [list(item) for item in config.healing.skip_sequences] == inherited_skips:
        config = replace(config, healing=replace(config.healing, skip_sequences=()))
    return config


def _with_skips(inherited: SkipLedger, added: Sequence[tuple[int, int]], *, position: int) -> SkipLedger:
    """The ledger with the ranges that the branch adds, all of which must still be ahead."""
    skips = inherited
    for start, stop in added:
        if start < position:
            raise RunRefusedError(
                f"healing.skip_sequences holds [{start}, {stop}], and the branch begins at sequence {position}: what "
                "was trained on cannot be left out any more. Branch from an earlier step, or drop the range."
            )
        skips = skips.add(start, stop)
    return skips


def _lineage(parent: StoragePath, info: CheckpointInfo) -> dict[str, Any]:
    """What the child says of its parent; a parent that is a branch brings its own lineage along."""
    facts = RunDirectory(parent).facts()
    lineage = {
        "run": facts.get("id"),
        "name": facts.get("name"),
        "directory": str(parent),
        "step": info.step,
        "checkpoint": _checksum(info),
        "wandb_id": facts.get("wandb", {}).get("id"),
    }
    return {**lineage, PARENT: facts[PARENT]} if PARENT in facts else lineage


def _checksum(info: CheckpointInfo) -> str:
    """The manifest's own checksum, which is that of every file too, since it names their hashes."""
    try:
        return str(json.loads((info.directory / MANIFEST_NAME).read_bytes())["checksum"])
    except FileNotFoundError as error:
        raise vanished(info) from error


def vanished(info: CheckpointInfo) -> CheckpointError:
    """The error for a checkpoint that the parent's retention removed in the meantime."""
    return CheckpointError(
        f"checkpoint {info.directory} is gone: the run that it belongs to goes on, and its retention removed it while "
        "it was being taken over. Branch from a later step, or raise the run's checkpoint.keep_last."
    )


__all__ = [
    "BRANCHED_FROM",
    "CLAIM_NAME",
    "LEASE_NAME",
    "PARENT",
    "Branch",
    "plan_branch",
    "refuse_taken_name",
    "vanished",
]
