"""What `bench model` trains on, and in which order."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.config_file import load_run_config
from launcher.model_bench import Setting, random_batch

TINY = (
    "model.vocab_size=100",
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.num_hidden_layers=1",
    "train.micro_batch_size=2",
)


@pytest.mark.parametrize(("dropout", "keys"), [(0.0, 0), (0.5, 2)])
def test_batch_has_keys_of_its_rows_when_the_model_drops(dropout: float, keys: int) -> None:
    overrides = ["data.dataset=random", *TINY, f"model.residual_dropout={dropout}"]
    config = load_run_config("smoke", overrides)
    setting = Setting(config=config, device="cpu", threads=1, steps=1, warmup_steps=1, document_tokens=8)
    found = random_batch(setting, 16).dropout_keys
    assert len(set([] if found is None else found.tolist())) == keys


def test_shortest_length_is_measured_first_so_that_its_peak_is_its_own() -> None:
    lengths = ["--length", "64", "--length", "32"]
    arguments = [
        "bench",
        "model",
        "smoke",
        *lengths,
        "--steps",
        "1",
        "--warmup",
        "1",
        "--threads",
        "1",
        "--json",
        *TINY,
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert [each["seq_len"] for each in json.loads(result.stdout)["measurements"]] == [32, 64]
