from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.errors import CorpusError
from data_pipeline.label_config import LabelsConfig
from data_pipeline.labels import LabelCounts, LabelMap, LabelReader


@pytest.mark.parametrize(
    ("config", "value", "label"),
    [
        (LabelsConfig(kind="class"), "good", "good"),
        (LabelsConfig(kind="class"), 3, "3"),
        (LabelsConfig(kind="class"), 3.0, "3"),
        (LabelsConfig(kind="class"), True, "True"),
        (LabelsConfig(kind="number"), 3, 3.0),
        (LabelsConfig(kind="number"), "-1.5", -1.5),
        (LabelsConfig(kind="classes"), ["b", "a", "b"], ("b", "a")),
        (LabelsConfig(kind="classes"), [], ()),
        (LabelsConfig(kind="token_class"), ["N", None, 1], ("N", None, "1")),
        (LabelsConfig(kind="class", boundaries=(0.0,), names=("under", "over")), -0.1, "under"),
        (LabelsConfig(kind="class", boundaries=(0.0,), names=("under", "over")), 0, "over"),
    ],
)
def test_label_is_read_as_its_kind_asks(config: LabelsConfig, value: Any, label: object) -> None:
    assert LabelReader(config, "corpus").read(value, "file, line 1") == label


@pytest.mark.parametrize(
    ("config", "value", "message"),
    [
        (
            LabelsConfig(kind="number"),
            float("nan"),
            "has nan under 'label', and labels.kind is number: it must be a fin",
        ),
        (
            LabelsConfig(kind="number"),
            None,
            "has None under 'label', and labels.kind is number: it must be a finite num",
        ),
        (
            LabelsConfig(kind="number"),
            True,
            "has True under 'label', and labels.kind is number: it must be a finite num",
        ),
        (LabelsConfig(kind="number"), 10**400, "has 1000.* under 'label', and labels.kind is number: it must be a fin"),
        (LabelsConfig(kind="number"), 1e300, "has 1e\\+300 under 'label', and labels.kind is number: it must be a fin"),
        (
            LabelsConfig(kind="class"),
            "\ud800",
            "has .* under 'label', and labels.kind is class: it must be a class who",
        ),
        (LabelsConfig(kind="class"), 1.5, "has 1.5 under 'label', and labels.kind is class: it must be a class"),
        (LabelsConfig(kind="class"), "", "has '' under 'label', and labels.kind is class: it must be a class"),
        (LabelsConfig(kind="classes"), "a", "has 'a' under 'label', and labels.kind is classes: it must be a list"),
        (
            LabelsConfig(kind="class", names=("a", "b")),
            "c",
            "has the label 'c' under 'label', and labels.names are 'a'",
        ),
    ],
)
def test_what_is_no_label_is_refused_with_its_place(config: LabelsConfig, value: Any, message: str) -> None:
    with pytest.raises(CorpusError, match=f"Source 'corpus': file, line 7 {message}"):
        LabelReader(config, "corpus").read(value, "file, line 7")


def test_classes_are_those_found_numbers_by_value_before_words() -> None:
    counts = LabelCounts()
    for label in ("b", "10", "a", "9", "-1", "--5", "b"):
        counts.add(label)
    assert counts.names(LabelsConfig(kind="class")) == ("-1", "9", "10", "--5", "a", "b")
    assert counts.of(("b", "c", "9")) == (2, 0, 1)


def test_given_names_keep_their_order_and_those_without_a_document() -> None:
    counts = LabelCounts()
    for label in ("a", "b"):
        counts.add(label)
    assert counts.names(LabelsConfig(kind="class", names=("z", "b", "a"))) == ("z", "b", "a")


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("class", ["a", "a"], r"labels.field 'label' holds 1 class \(a\), and kind class tells at least 2 apart"),
        ("classes", [()], r"labels.field 'label' holds 0 classes \(none\), and kind classes tells at least 1 apart"),
    ],
)
def test_labels_that_tell_nothing_apart_are_refused(kind: Any, labels: list[Any], message: str) -> None:
    counts = LabelCounts()
    for label in labels:
        counts.add(label)
    with pytest.raises(CorpusError, match=message):
        counts.names(LabelsConfig(kind=kind))


def test_numbers_of_labels_are_places_among_the_names() -> None:
    assert LabelMap("class", ("a", "b")).number("b") == 1
    assert LabelMap("classes", ("a", "b")).number(("b", "a")) == [1, 0]
    assert LabelMap("token_class", ("a", "b")).number(("b", None)) == [1, -1]
    assert LabelMap("number", ()).number(0.5) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "number", "names": ("a", "b")}, "kind is number, which has none"),
        ({"kind": "class", "names": ("a", "a")}, "one stands there twice"),
        ({"kind": "class", "names": ("a",)}, "takes at least 2"),
        ({"kind": "number", "boundaries": (0.0,)}, "they cut numbers into a class"),
        ({"kind": "class", "boundaries": (1.0, 0.0), "names": ("a", "b", "c")}, "they are finite and grow"),
        ({"kind": "class", "boundaries": (0.0,)}, "which make 2 classes, and names are None"),
        ({"kind": "class", "boundaries": (0.0,), "names": ("a", "b", "c")}, "which make 2 classes, and names are"),
    ],
)
def test_configuration_that_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelsConfig(**options)
