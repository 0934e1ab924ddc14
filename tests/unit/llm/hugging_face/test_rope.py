"""Rotary positions in old and new spellings, and what of them is refused."""

from __future__ import annotations

import pytest
from config_documents import (
    GEMMA3,
    LLAMA,
    Document,
    assert_read,
    assert_read_as_by_transformers,
    assert_refused,
    refusals,
)

from llm.config import RopeScaling

OLDER = [
    ("theta", LLAMA, {"rope_theta": 5e5}, {"rope_theta": 5e5}),
    (
        "linear",
        LLAMA,
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": RopeScaling(rope_type="linear", factor=2)},
    ),
    (
        "llama 3",
        LLAMA,
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        {
            "rope_theta": 5e5,
            "rope_scaling": RopeScaling(
                rope_type="llama3",
                factor=8,
                low_freq_factor=1,
                high_freq_factor=4,
                original_max_position_embeddings=32,
            ),
        },
    ),
    (
        "yarn without its length",
        LLAMA,
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": RopeScaling(rope_type="yarn", factor=4, original_max_position_embeddings=128)},
    ),
    (
        "gemma 3, stretched",
        GEMMA3,
        {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        {
            "layer_types": None,
            "sliding_window": 4096,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": RopeScaling(rope_type="linear", factor=8),
        },
    ),
]


@pytest.mark.parametrize(("document", "older", "expected"), [c[1:] for c in OLDER], ids=[c[0] for c in OLDER])
def test_older_keys_are_read(document: Document, older: Document, expected: Document) -> None:
    assert_read(document, older, expected)


@pytest.mark.parametrize(("document", "older"), [c[1:3] for c in OLDER], ids=[c[0] for c in OLDER])
def test_older_keys_are_read_as_transformers_reads_them(document: Document, older: Document) -> None:
    assert_read_as_by_transformers(document, older)


REFUSED = [
    (LLAMA, {"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0.5: a part of each head is left unrotated"),
    (
        LLAMA,
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        r"rope_type is 'dynamic', and .*linear, llama3, yarn",
    ),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0.5}}, r"factor is 0.5: a scaling makes positions longer"),
    (LLAMA, {"rope_scaling": [1]}, r"rope_scaling is \[1\], and is an object"),
    (
        LLAMA,
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}},
        r"scaling of type yarn has truncate = False, which is not supported here",
    ),
    (
        LLAMA,
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
        r"rope_parameters is .* and rope_scaling .*: they contradict each other",
    ),
    (
        GEMMA3,
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        r"sliding_attention has rope_type linear, and sliding layers here have none of their own",
    ),
    (GEMMA3, {"rope_parameters": {"rope_theta": 1.0}}, r"rope_parameters has the keys \['rope_theta'\]"),
]


@refusals(REFUSED)
def test_a_config_is_refused_when_it_asks_for_more(document: Document, more: Document, message: str) -> None:
    assert_refused(document, more, message)
