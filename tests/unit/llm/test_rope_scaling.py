"""What contradicts itself in a stretching of positions is refused with the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from llm.rope_scaling import RopeScaling


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_type": "linear", "factor": 0.5}, "factor is 0.5: .*at least 1."),
        (
            {"rope_type": "linear", "factor": 2.0, "beta_fast": 32.0},
            "beta_fast is 32.0, and rope_type is linear, which has no use for it: it belongs to yarn. Leave beta_fast",
        ),
        (
            {"rope_type": "yarn", "factor": 2.0},
            "original_max_position_embeddings is null, and rope_type yarn stretches",
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 2.0,
                "original_max_position_embeddings": 8,
                "low_freq_factor": 4.0,
            },
            "low_freq_factor is 4.0 and high_freq_factor 4.0: .*model's own configuration.",
        ),
    ],
)
def test_scaling_is_refused_when_it_contradicts_itself(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeScaling(**fields)
