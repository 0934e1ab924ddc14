"""Which checkpoint of a run is taken for evaluation and generation, and what is said of those passed over."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.checkpoint import CheckpointWriter, list_checkpoints
from cluster.config import CheckpointConfig, RunConfig
from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import MASTER, Fragment, FragmentState
from cluster.engines.torch_engine import TorchEngine
from cluster.inference import _resolve, load_run
from cluster.run_directory import TOKENIZER_NAME, config_as_dict
from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from llm.config import ModelConfig, OptimizerConfig
from llm.model_config import RopeScaling
from llm.transformer import Transformer


def _save(run: Path, step: int) -> None:
    writer = CheckpointWriter(run, attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
    writer.save(step, [FragmentState(Fragment("weight", "decay", (3,), 0, 3), {MASTER: torch.zeros(3)}, {})], {})
    writer.next_loss(2.0)
    writer.finish()


def test_damaged_checkpoint_is_named_when_an_older_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.json").write_text("{}")
    for step in (4, 8):
        _save(tmp_path, step)
    damaged = list_checkpoints(tmp_path)[-1]
    assert damaged.manifest is not None
    path = damaged.directory / damaged.manifest.files[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for _ in range(2):  # found, then remembered
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            info, _run = _resolve(tmp_path)
        assert info.step == 4
        (message,) = caplog.messages
        assert message.startswith(f"step 4 is taken, since step 8 cannot be used: checkpoint file {path} was altered")


def test_loaded_model_computes_what_the_run_did_when_its_configuration_has_lists_and_parts(
    tmp_path: Path, dataset: Path
) -> None:
    data = Dataset.open(dataset)
    config = ModelConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        sliding_window=4,
        layer_types=("sliding_attention", "full_attention"),
        rope_scaling=RopeScaling(rope_type="linear", factor=2.0),
        attention="eager",
    )
    resolved = replace(config, vocab_size=data.vocab_size)
    trained = Transformer(resolved, "eager")
    engine = TorchEngine(trained, optimizer=OptimizerConfig(), precision="fp32")
    engine.load(InitialState(resolved, 7))
    run = RunConfig(name="run", data=DataConfig(dataset=str(dataset)), model=config)
    (tmp_path / "run.json").write_text("{}")
    shutil.copy(dataset / TOKENIZER_NAME, tmp_path)
    writer = CheckpointWriter(tmp_path, attempt=1, rank=0, world_size=1, policy=CheckpointConfig())
    writer.save(4, engine.snapshot(), {"config": config_as_dict(run)})
    writer.next_loss(2.0)
    writer.finish()
    tokens = torch.arange(12)[None]
    loaded = load_run(str(tmp_path)).model
    assert loaded.config == resolved
    with torch.no_grad():
        assert torch.equal(loaded.logits(tokens), trained.logits(tokens))
