"""What a run trained, read back for evaluation and generation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from attempts import attempt_alone
from tiny import tiny_run

from cluster.inference import evaluate_text, load_run
from llm.config import RopeScaling


def test_model_is_the_one_trained_when_its_configuration_has_parts(dataset: Path, tmp_path: Path) -> None:
    """A scaling and a pattern come back from the checkpoint's JSON as what they were."""
    config = tiny_run(tmp_path, dataset, train__max_steps=4)
    model = replace(
        config.model,
        rope_scaling=RopeScaling(rope_type="linear", factor=2.0),
        sliding_window=8,
        layer_types=("sliding_attention", "full_attention"),
    )
    attempt_alone(replace(config, model=model))
    loaded = load_run(str(tmp_path / "tiny"))
    assert replace(loaded.model.config, vocab_size=None) == model
    assert math.isfinite(evaluate_text(loaded, "Emma was handsome.")["loss"])
