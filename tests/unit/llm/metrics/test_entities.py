"""Entities against a twin that tries every span."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.metrics.entities import Entity, entity_tags

IOB2 = ("O", "B-X", "I-X", "B-Y", "I-Y")
IOBES = ("O", *(f"{prefix}-{kind}" for kind in "XY" for prefix in "BIES"))


def slow_iob2(tags: list[str]) -> set[Entity]:
    return {
        (kind, begin, end)
        for kind in "XY"
        for begin in range(len(tags))
        for end in range(begin + 1, len(tags) + 1)
        if tags[begin] == f"B-{kind}"
        and all(tag == f"I-{kind}" for tag in tags[begin + 1 : end])
        and tags[end : end + 1] != [f"I-{kind}"]
    }


def slow_iobes(tags: list[str]) -> set[Entity]:
    return {
        (kind, begin, end)
        for kind in "XY"
        for begin in range(len(tags))
        for end in range(begin + 1, len(tags) + 1)
        if tags[begin:end] in ([f"S-{kind}"], [f"B-{kind}", *[f"I-{kind}"] * (end - begin - 2), f"E-{kind}"])
    }


def found(names: tuple[str, ...], tags: list[str]) -> set[Entity]:
    scheme = entity_tags(names)
    assert scheme is not None
    return scheme.entities([names.index(tag) for tag in tags])


@given(st.lists(st.sampled_from(IOB2), max_size=12))
def test_entities_equal_the_spans_that_iob2_allows(tags: list[str]) -> None:
    assert found(IOB2, tags) == slow_iob2(tags)


@given(st.lists(st.sampled_from(IOBES), max_size=12))
def test_entities_equal_the_spans_that_iobes_allows(tags: list[str]) -> None:
    assert found(IOBES, tags) == slow_iobes(tags)


@pytest.mark.parametrize(
    ("names", "tags", "entities"),
    [
        (IOB2, ["B-X", "I-X", "O", "B-Y"], {("X", 0, 2), ("Y", 3, 4)}),
        (IOB2, ["I-X", "I-X", "O"], set()),
        (IOB2, ["B-X", "I-Y", "I-Y"], {("X", 0, 1)}),
        (IOB2, ["B-X", "B-X", "I-X"], {("X", 0, 1), ("X", 1, 3)}),
        (IOBES, ["B-X", "I-X", "E-X", "S-Y"], {("X", 0, 3), ("Y", 3, 4)}),
        (IOBES, ["B-X", "I-X", "O"], set()),
        (IOBES, ["B-X", "E-Y"], set()),
        (IOBES, ["E-X", "I-X"], set()),
    ],
)
def test_entities_are_those_of_seqeval_when_strict(
    names: tuple[str, ...], tags: list[str], entities: set[Entity]
) -> None:
    assert found(names, tags) == entities


def test_names_are_read_when_types_have_dashes() -> None:
    scheme = entity_tags(["O", "B-work-of-art", "I-work-of-art"])
    assert scheme is not None
    assert (scheme.scheme, scheme.types) == ("IOB2", ("work-of-art",))


@pytest.mark.parametrize("names", [["NOUN", "VERB"], ["O", "I-X"], ["O", "B-"], ["O", "B-X", "U-X"]], ids=str)
def test_names_are_no_entities_when_they_follow_no_scheme(names: list[str]) -> None:
    assert entity_tags(names) is None
