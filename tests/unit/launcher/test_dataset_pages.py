"""What is said of datasets and of the tokens of a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipeline.plan import TrainingLedger
from launcher.cli import app
from launcher.dataset_pages import token_account


@pytest.fixture
def build_config(tmp_path: Path) -> Path:
    """A dataset configuration beside its corpus."""
    texts = [f"document {number} speaks of the sea and of ship number {number * 7}" for number in range(60)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = tmp_path / "data.yaml"
    config.write_text(
        f"name: corpus\noutput: {tmp_path / 'dataset'}\n"
        f"sources: [{{name: corpus, path: {tmp_path / 'corpus.jsonl'}}}]\n"
        "tokenizer: {train: {vocab_size: 300}}\nvalidation_fraction: 0.1\n"
    )
    return config


def test_build_says_what_it_checked_when_the_dataset_is_up_to_date(build_config: Path) -> None:
    runner = CliRunner()
    first = runner.invoke(app, ["data", "build", str(build_config)])
    assert (first.exit_code, "up to date" in first.output) == (0, False)
    again = runner.invoke(app, ["data", "build", str(build_config)])
    assert again.exit_code == 0
    dataset = build_config.parent / "dataset"
    fingerprint = json.loads((dataset / "manifest.json").read_text())["fingerprint"]
    assert again.stdout.splitlines()[-1] == (
        f"The dataset in {dataset} is up to date (fingerprint {fingerprint}): nothing was built. Checked: the text, "
        "the configuration, the manifest, the tokenizer, the length of 2 shards. "
        f"`longhaul data verify {dataset}` reads every byte."
    )


@pytest.mark.parametrize(("completed", "epoch"), [(0, "1"), (1, "2"), (1999, "2,000")])
def test_token_account_names_the_epoch_that_its_figures_are_of(completed: int, epoch: str) -> None:
    ledger = TrainingLedger(
        dataset="austen",
        dataset_tokens=1200,
        train_tokens=1000,
        validation_tokens=200,
        completed_epochs=completed,
        trained_tokens=600,
        not_yet_used_tokens=350,
        tail_tokens=50,
        skipped_tokens=0,
    )
    assert token_account(ledger) == (
        f"tokens  austen, in epoch {epoch}: 1,000 train = 600 trained + 350 not yet used + 50 tail + 0 skipped; "
        "200 validation"
    )
