"""A model that can be asked, for tests of what is done with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.inference import LoadedModel
from data_pipeline.config import DataConfig, TokenizerTrainingConfig
from data_pipeline.tokenizer import train_tokenizer
from llm.config import ModelConfig
from llm.initialization import initialize
from llm.transformer import Transformer

_TEXT = "It was a truth that nobody in the house would hear, and she had said it twice before tea. " * 40


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A small model with its initial weights, wide apart, so that it prefers some texts to others."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizer = train_tokenizer([_TEXT], TokenizerTrainingConfig(vocab_size=300), path)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.3,
    )
    model = Transformer(config, "sdpa")
    initialize(model, config, seed=5)
    data = DataConfig(dataset="unused", seq_len=32)
    return LoadedModel(
        model=model.eval(), tokenizer=tokenizer, data=data, dataset_paths=(), step=1, run_directory=Path("run")
    )
