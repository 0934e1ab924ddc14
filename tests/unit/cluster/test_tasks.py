"""Tasks that learn labels: the head that follows, and what does not go together."""

from __future__ import annotations

import pytest

from cluster.tasks import KINDS, head_in, head_of, labels_as_dict
from data_pipeline.manifest import LabelsRecord
from llm.head_config import HeadConfig


def labels(kind: str, *names: str) -> LabelsRecord:
    return LabelsRecord(kind=kind, names=names, counts={}, hashes={})


@pytest.mark.parametrize(
    ("task", "record", "head"),
    [
        ("sequence_classification", labels("class", "a", "b"), HeadConfig(predicts="class", outputs=2)),
        ("multi_label_classification", labels("classes", "a"), HeadConfig(predicts="labels", outputs=1)),
        ("regression", labels("number"), HeadConfig(predicts="number", outputs=1)),
        ("token_classification", labels("token_class", "a", "b"), HeadConfig(predicts="class", outputs=2, bias=True)),
    ],
)
def test_head_follows_from_task_and_labels(task: str, record: LabelsRecord, head: HeadConfig) -> None:
    assert head_of(task, record) == head
    run = {"config": {"task": task}, "labels": labels_as_dict(record)}
    assert head_in(run) == head


def test_every_task_has_a_kind_of_its_own() -> None:
    assert len(set(KINDS.values())) == len(KINDS)


def test_checkpoint_of_a_language_model_has_no_head() -> None:
    assert head_in({"config": {}}) is None
    assert head_in({"config": {"task": "pretrain"}, "labels": {"kind": "class", "names": ["a", "b"]}}) is None


def test_labels_of_another_kind_are_refused_with_the_task_they_are_for() -> None:
    with pytest.raises(
        ValueError, match=r"labels of kind number, and the dataset's are of kind class. Use sequence_cl"
    ):
        head_of("regression", labels("class", "a", "b"))
