"""What a run trained, read back for evaluation and generation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from attempts import attempt_alone
from tiny import tiny_run
from typer.testing import CliRunner

from cluster.evaluation.language import evaluate_text
from cluster.inference import load_run
from launcher.cli import app
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


def test_run_is_evaluated_on_its_own_datasets_by_source(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, dataset, train__max_steps=4)
    attempt_alone(config)
    runner = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "300"})
    page = runner.invoke(app, ["evaluate", str(tmp_path / "tiny")])
    assert page.exit_code == 0, page.stderr
    facts = json.loads(runner.invoke(app, ["evaluate", str(tmp_path / "tiny"), "--json"]).stdout)
    (figures,) = facts["results"]
    assert (facts["step"], figures["dataset"]) == (4, str(dataset))
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    (source,) = figures["sources"]
    assert source == {"source": "emma", **{key: figures[key] for key in source if key != "source"}}
    rows = [line.split() for line in page.stdout.splitlines()]
    cells = [
        f"{figures['tokens']:,}",
        f"{figures['bytes']:,}",
        f"{figures['loss']:.4f}",
        f"{figures['perplexity']:.2f}",
    ]
    assert [row[1:5] for row in rows if row and row[0] in ("emma", "total")] == [cells, cells]
    assert ["loss", f"{figures['loss']:.4f}", "nats", "per", "token"] in rows
