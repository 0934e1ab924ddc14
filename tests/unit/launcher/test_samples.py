"""Samples for runs that begin with given weights: built with the tokenizer of those."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.config import RunConfig
from cluster.errors import RunNotFoundError
from data_pipeline.config import DataConfig, TokenizerTrainingConfig
from data_pipeline.dataset import Dataset
from data_pipeline.tokenizer import train_tokenizer
from launcher.errors import LauncherError
from launcher.samples import resolve_samples

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 320,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A Hugging Face directory with a tokenizer."""
    directory = tmp_path / "llama"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA))
    train_tokenizer(
        ["User:\nHi\nAssistant:\nHello"], TokenizerTrainingConfig(vocab_size=300), directory / "tokenizer.model"
    )
    return directory


def tuning(tmp_path: Path, weights: Path) -> RunConfig:
    data = DataConfig(dataset="sample:dialogues", seq_len=32)
    return RunConfig(
        name="chat",
        task="instruction",
        storage=str(tmp_path / "runs"),
        initialize_from=str(weights),
        data=data,
    )


def told(message: dict[str, object]) -> None:
    assert message["type"] == "phase"


def test_sample_is_built_with_the_tokenizer_of_the_weights(tmp_path: Path, weights: Path) -> None:
    resolved = resolve_samples(tuning(tmp_path, weights), told)
    built = Dataset.open(str(resolved.data.dataset))
    assert built.tokenizer().model == (weights / "tokenizer.model").read_bytes()
    assert built.directory == tmp_path / "runs" / ".datasets" / f"dialogues-{built.tokenizer_hash[:8]}"
    assert built.chat_template is not None


def test_sample_is_found_by_the_runs_own_tokenizer_when_the_weights_are_gone(tmp_path: Path, weights: Path) -> None:
    config = tuning(tmp_path, weights)
    first = resolve_samples(config, told)
    (tmp_path / "runs" / "chat").mkdir()
    shutil.move(weights / "tokenizer.model", tmp_path / "runs" / "chat" / "tokenizer.model")
    shutil.rmtree(weights)
    assert resolve_samples(config, told) == first


def test_gone_weights_are_told_when_the_run_has_not_begun(tmp_path: Path, weights: Path) -> None:
    shutil.rmtree(weights)
    with pytest.raises(RunNotFoundError, match=f"initialize_from is {weights}, which is no run"):
        resolve_samples(tuning(tmp_path, weights), told)


def test_sample_is_refused_when_the_weights_have_no_tokenizer(tmp_path: Path, weights: Path) -> None:
    (weights / "tokenizer.model").unlink()
    with pytest.raises(LauncherError) as caught:
        resolve_samples(tuning(tmp_path, weights), told)
    assert str(caught.value) == (
        "data.dataset is sample:dialogues, which is built with the tokenizer of the weights that the run begins with, "
        f"and there is no {weights / 'tokenizer.model'}. Name weights with a SentencePiece tokenizer in "
        "initialize_from, or a dataset that was built with theirs."
    )
