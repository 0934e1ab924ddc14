"""Has every engine that loads a checkpoint save at once what it holds then, as a checkpoint that can be compared."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from injection import code_after_import

LOADED = "loaded"
"""Directory beside the run that the checkpoints of what was loaded lie in, each under the step of its origin."""
_STATEMENTS = """sys.path.append({here!r})
import loaded_state
loaded_state.save_after_load(module)"""


def startup_code() -> str:
    """Code for sitecustomize.py."""
    return code_after_import(
        "cluster.engines.deepspeed_engine", _STATEMENTS.format(here=str(Path(__file__).parent.resolve()))
    )


def save_after_load(module: ModuleType) -> None:
    """Wrap the engine's `load`; called in each process that imports the engine, before it is made.

    Args:
        module: `cluster.engines.deepspeed_engine`.
    """
    from cluster.checkpoint import CheckpointReader

    load = module.DeepSpeedEngine.load

    def load_and_save(engine: Any, source: Any) -> None:
        load(engine, source)
        if isinstance(source, CheckpointReader):
            _save(engine, source)

    module.DeepSpeedEngine.load = load_and_save  # type: ignore[attr-defined]


def _save(engine: Any, source: Any) -> None:
    from cluster.checkpoint import CheckpointWriter, WriterHooks
    from cluster.collectives import Collectives
    from cluster.config import CheckpointConfig

    manifest, run_directory = source._manifest, Path(source._directory).parents[1]
    topology = engine._topology
    writer = CheckpointWriter(
        run_directory.parent / LOADED,
        attempt=1,
        rank=topology.rank,
        world_size=topology.world_size,
        policy=CheckpointConfig(keep_last=1000),
        hooks=WriterHooks(agree=Collectives().first_error),
    )
    writer.save(manifest.step, engine.snapshot(), {})
    writer.finish()
