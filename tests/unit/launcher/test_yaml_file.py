"""YAML 1.2 values, and the text of every refusal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from launcher.errors import ConfigError
from launcher.yaml_file import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("Off", "Off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ("", None),
        ("null", None),
        ("sample:austen", "sample:austen"),
        ("'3'", "3"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_parse_yaml_follows_version_1_2(text: str, value: Any) -> None:
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands on line 1 already. Remove one of them."),
        ("a:\n  b: 1\n  b: 1", "line 3: the key 'b' stands on line 2 already. Remove one of them."),
        ("1: x", "line 1: a key must be plain text. Put it in quotes if it looks like a number."),
        ("a: {b: .nan}", "'a.b' is nan, and must be a finite number."),
        ("a: [1, -.inf]", "'a.1' is -inf, and must be a finite number."),
        ("a: 1e999", "'a' is inf, and must be a finite number."),
        ("a: &x [*x]", "'a.0' contains itself. Write the values out."),
        ("a: !!set {b}", "'a' is a YAML set, which no setting takes. Write it in quotes."),
        ("a: [1,", "line 1: not readable as YAML: expected the node content, but found '<stream end>'."),
    ],
)
def test_parse_yaml_names_the_place_when_refusing(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "value",
    ["on", "no", "1e3", "0o17", "12:30", "2020-01-01", "null", "~", "", "3", "a: b", "1_000", "é\n", "plain"],
)
def test_dump_yaml_writes_text_that_yaml_1_1_and_1_2_read_alike(value: str) -> None:
    text = dump_yaml({"key": value})
    assert parse_yaml(text) == {"key": value}
    assert yaml.safe_load(text) == {"key": value}


@pytest.mark.parametrize("value", [1e-5, 1e22, 0.1 + 0.2, 3e-4, 5e-324, 1.0, -0.0])
def test_dump_yaml_keeps_floats_exactly(value: float) -> None:
    again = parse_yaml(dump_yaml(value))
    assert isinstance(again, float)
    assert again == value
    assert math.copysign(1, again) == math.copysign(1, value)


def test_dump_yaml_keeps_the_order_of_keys_and_short_lists_on_a_line() -> None:
    assert dump_yaml({"b": [0.9, 0.95], "a": [{"x": 1}]}) == "b: [0.9, 0.95]\na:\n- x: 1\n"
