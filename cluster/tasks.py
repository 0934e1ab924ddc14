"""Tasks that learn labels: what they ask of the data, and the head that follows from both. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from data_pipeline.manifest import LabelsRecord
from llm.head_config import HeadConfig

if TYPE_CHECKING:
    from cluster.config import RunConfig

LabelTask = Literal["sequence_classification", "multi_label_classification", "regression", "token_classification"]
Task = Literal["pretrain", "instruction", LabelTask]

KINDS: dict[str, str] = {
    "sequence_classification": "class",
    "multi_label_classification": "classes",
    "regression": "number",
    "token_classification": "token_class",
}
"""The kind of labels that each task learns."""
assert set(KINDS) == set(get_args(LabelTask))

LABELS = "labels"
"""Key in the manifests of checkpoints, and in run.json, of what a model's outputs mean."""


def learns_labels(task: str) -> bool:
    """Whether a task learns labels of documents, not their text."""
    return task in KINDS


def head_of(task: str, labels: LabelsRecord) -> HeadConfig:
    """The head of a task.

    Args:
        task: One that learns labels.
        labels: Those of the dataset.

    Raises:
        ValueError: They are of another kind.
    """
    if labels.kind != KINDS[task]:
        raise ValueError(
            f"task is {task}, which learns labels of kind {KINDS[task]}, and the dataset's are of kind {labels.kind}. "
            f"Use {next((name for name, kind in KINDS.items() if kind == labels.kind), 'another task')}, or build the "
            f"dataset with labels.kind {KINDS[task]}."
        )
    if labels.kind == "number":
        return HeadConfig(predicts="number", outputs=1)
    predicts: Literal["class", "labels"] = "labels" if labels.kind == "classes" else "class"
    return HeadConfig(predicts=predicts, outputs=len(labels.names), bias=labels.kind == "token_class")


def labels_as_dict(labels: LabelsRecord) -> dict[str, Any]:
    """What a model's outputs mean, for its checkpoints."""
    return {"kind": labels.kind, "names": list(labels.names)}


def head_in(run: Mapping[str, Any]) -> HeadConfig | None:
    """The head of the model in a checkpoint.

    Args:
        run: What its manifest says of the run.
    """
    labels, task = run.get(LABELS), run["config"].get("task", "pretrain")
    if labels is None or not learns_labels(task):
        return None
    return head_of(task, LabelsRecord(kind=labels["kind"], names=tuple(labels["names"]), counts={}, hashes={}))


def check_task(config: RunConfig) -> None:
    """Refuse sections that do not go with the task.

    Raises:
        ValueError: Names the field, what it is and what it may be.
    """
    if config.model.head is not None:
        raise ValueError("model.head is set: it follows from the task and the dataset's labels. Leave it out.")
    task, packing = config.task, config.data.packing
    if task == "pretrain" and packing == "examples":
        raise ValueError(
            "data.packing is examples and task pretrain: examples are for tasks that learn labels "
            f"({', '.join(KINDS)}). Name one of these as task, or set data.packing to stream."
        )
    wanted = ("examples",) if learns_labels(task) else ("stream", "documents")
    if packing not in wanted:
        raise ValueError(
            f"task is {task} and data.packing {packing}: this task takes {' or '.join(wanted)}. Change data.packing."
        )
    if not learns_labels(task):
        if config.train.label_smoothing:
            raise ValueError(
                f"train.label_smoothing is {config.train.label_smoothing} and task {task}: it belongs to tasks that "
                "learn classes. Leave it out."
            )
        return
    if config.train.label_smoothing and KINDS[task] not in ("class", "token_class"):
        raise ValueError(
            f"train.label_smoothing is {config.train.label_smoothing} and task {task}: only one class of several can "
            "be smoothed. Leave it out."
        )
    if not config.data.document_mask:
        raise ValueError(
            f"data.document_mask is false and task {task}: each document is a sequence by itself, so there is nothing "
            "to mask. Leave it out."
        )
    if config.data.class_weights != "none" and KINDS[task] not in ("class", "token_class"):
        raise ValueError(
            f"data.class_weights is {config.data.class_weights} and task {task}: only one class of several can be "
            "balanced. Leave it out."
        )
    if config.train.z_loss_coefficient:
        raise ValueError(
            f"train.z_loss_coefficient is {config.train.z_loss_coefficient} and task {task}: it belongs to the logits "
            "of a language model. Leave it out."
        )
    if config.evaluation.prompts != type(config.evaluation).__dataclass_fields__["prompts"].default:
        raise ValueError(
            f"evaluation.prompts are {list(config.evaluation.prompts)} and task {task}: a model that learns labels "
            "writes no text. Leave them out."
        )
    if config.evaluation.beside_training:
        raise ValueError(
            f"evaluation.beside_training is on and task {task}: labels are evaluated in the training alone. Turn it "
            "off."
        )
