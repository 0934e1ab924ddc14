"""Engines by request: the two builders that an attempt is given."""

from __future__ import annotations

from cluster.attempt import EngineRequest
from cluster.engine import Engine


def deepspeed_engine(request: EngineRequest) -> Engine:
    """ZeRO at the configured stage; imports DeepSpeed, which takes seconds, only here."""
    from cluster.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        request.model,
        request.layout.attention,
        optimizer=request.config.optimizer,
        stage=request.config.zero.stage,
        precision=request.layout.precision,
        micro_batch_size=request.config.train.micro_batch_size,
        micro_batches=request.micro_batches,
        topology=request.topology,
    )


def torch_engine(request: EngineRequest) -> Engine:
    """Plain torch in this process."""
    from cluster.torch_engine import TorchEngine
    from llm.transformer import Transformer

    return TorchEngine(
        Transformer(request.model, request.layout.attention),
        optimizer=request.config.optimizer,
        precision=request.layout.precision,
        device=request.topology.device,
    )
