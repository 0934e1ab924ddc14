"""Overrides: what they set and, in full, what is said about those that cannot be applied."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.errors import ConfigError
from launcher.overrides import apply_overrides


@pytest.mark.parametrize(
    ("override", "tree"),
    [
        ("a.b=2", {"a": {"b": 2}, "l": [{"p": "x"}]}),
        ("a=null", {"a": None, "l": [{"p": "x"}]}),
        ("a.c.d=3e-4", {"a": {"b": 1, "c": {"d": 3e-4}}, "l": [{"p": "x"}]}),
        ("l.0.p=y=z", {"a": {"b": 1}, "l": [{"p": "y=z"}]}),
        ("l=[1, 2]", {"a": {"b": 1}, "l": [1, 2]}),
        ("a={c: on}", {"a": {"c": "on"}, "l": [{"p": "x"}]}),
        ("n=", {"a": {"b": 1}, "l": [{"p": "x"}], "n": None}),
    ],
)
def test_apply_overrides_sets_one_value(override: str, tree: dict[str, Any]) -> None:
    assert apply_overrides({"a": {"b": 1}, "l": [{"p": "x"}]}, [override]) == tree


def test_apply_overrides_lets_the_later_one_win_and_leaves_the_tree_alone() -> None:
    tree = {"a": {"b": 1}}
    assert apply_overrides(tree, ["a.b=2", "a.b=3"]) == {"a": {"b": 3}}
    assert tree == {"a": {"b": 1}}


def test_apply_overrides_opens_a_section_that_the_file_left_empty() -> None:
    assert apply_overrides({"a": None}, ["a.b=1"]) == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.b", "override 'a.b': write it as section.key=value, without spaces around the '='."),
        ("a.b =1", "override 'a.b =1': write it as section.key=value, without spaces around the '='."),
        ("=1", "override '=1': write it as section.key=value, without spaces around the '='."),
        (
            "a.b=[1,",
            "override 'a.b=[1,': the value is not readable as YAML: "
            "expected the node content, but found '<stream end>'.",
        ),
        ("a.b=.inf", "override 'a.b=.inf': the value is inf, and must be a finite number."),
        ("a.b.c=1", "override 'a.b.c=1': 'a.b' is 1 and has no part 'c'."),
        ("l.1.p=x", "override 'l.1.p=x': 'l' has 1 element, counted from 0, so there is no l.1."),
        ("l.p=x", "override 'l.p=x': 'l' is a list, so the next part is a position, as in l.0."),
        (
            "a.betas.1=0.9",
            "override 'a.betas.1=0.9': the file sets no list 'a.betas' whose element 1 could be changed. "
            "Give the whole list, a.betas=[...].",
        ),
    ],
)
def test_apply_overrides_says_what_is_wrong(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"a": {"b": 1}, "l": [{"p": "x"}]}, [override])
    assert str(caught.value) == message
