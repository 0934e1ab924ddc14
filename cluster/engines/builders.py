"""Engines by request: the two builders that an attempt is given."""

from __future__ import annotations

from functools import partial

from cluster.attempt import EngineRequest
from cluster.config import TrainConfig
from cluster.engines.protocol import Engine
from llm.compilation import compile_blocks
from llm.config import ModelConfig
from llm.transformer import Transformer


def deepspeed_engine(request: EngineRequest) -> Engine:
    """ZeRO at the configured stage; imports DeepSpeed, which takes seconds, only here."""
    from cluster.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        partial(build_model, request.model, request.layout.attention, request.config.train),
        optimizer=request.config.optimizer,
        zero=request.config.zero,
        precision=request.layout.precision,
        micro_batch_size=request.config.train.micro_batch_size,
        micro_batches=request.micro_batches,
        topology=request.topology,
        compiled=request.config.train.compile,
    )


def torch_engine(request: EngineRequest) -> Engine:
    """Plain torch in this process."""
    from cluster.engines.torch_engine import TorchEngine

    return TorchEngine(
        build_model(request.model, request.layout.attention, request.config.train),
        optimizer=request.config.optimizer,
        precision=request.layout.precision,
        device=request.topology.device,
    )


def build_model(config: ModelConfig, attention: str, train: TrainConfig) -> Transformer:
    """An empty model as a run trains it.

    Args:
        config: Its shape, with the vocabulary's size.
        attention: Name of the backend, resolved.
        train: Says what it keeps for the backward pass, whether it is compiled, its z-loss and label smoothing.
    """
    model = Transformer(
        config,
        attention,
        activation_checkpointing=train.activation_checkpointing,
        z_loss=train.z_loss_coefficient,
        label_smoothing=train.label_smoothing,
    )
    if train.compile:
        compile_blocks(model)
    return model
