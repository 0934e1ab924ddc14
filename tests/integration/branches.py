"""A run that was never trained, to branch from: a real directory and manifests, tensor files of any bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.branch import Branch, plan_branch
from cluster.checkpoint.manifest import FileRecord, Manifest, Piece, step_directory
from cluster.config import RunConfig
from cluster.healing import HEALING
from cluster.resolution import open_plan
from cluster.run_directory import config_as_dict
from data_pipeline.publish import file_hashes
from data_pipeline.skip_ledger import SkipLedger

STEP = 4
"""The first of its checkpoints."""
BATCH = 6


def save(config: RunConfig, step: int, skips: SkipLedger = SkipLedger()) -> None:  # noqa: B008 - immutable
    directory = step_directory(Path(config.storage) / config.name, step)
    (directory / "attempt-00002").mkdir(parents=True)
    files = []
    for rank in range(2):
        path = directory / "attempt-00002" / f"rank-{rank:05d}.safetensors"
        path.write_bytes(bytes([rank + 1]) * 1000)
        hashes = file_hashes(path)
        files.append(FileRecord(f"attempt-00002/{path.name}", hashes.size_bytes, hashes.hash, tuple(hashes.blocks)))
    plan = open_plan(config)
    manifest = Manifest(
        step=step,
        attempt=2,
        created_unix_seconds=1.0,
        next_batch_loss=5.5,
        run={
            "config": config_as_dict(config),
            "data_plan": plan.describe(),
            "skip_ledger": skips.to_json(),
            "layout": {"world_size": 2},
            HEALING: {"skips": skips.to_json(), "withheld": [3, 7], "rollbacks": [], "losses": [6.0, 5.9]},
            "wandb_id": "parents",
        },
        state_names=("master",),
        pieces={
            "weight": tuple(
                Piece(
                    group="decay", shape=(2, 3), offset=3 * n, length=3, file=file.path, scalars={}, states=("master",)
                )
                for n, file in enumerate(files)
            )
        },
        files=tuple(files),
    )
    (directory / "MANIFEST.json").write_bytes(manifest.to_bytes())


def parent_directory(parent: RunConfig) -> Path:
    return Path(parent.storage) / parent.name


def plan_child(parent: RunConfig, step: int = STEP, **changed: Any) -> Branch:
    config = replace(parent, name="child")
    for key, value in changed.items():
        part, _, field = key.partition("__")
        value = replace(getattr(config, part), **{field: value}) if field else value
        config = replace(config, **{part: value})
    return plan_branch(parent_directory(parent), step, config)
