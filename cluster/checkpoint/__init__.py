"""Checkpoints: one format for every topology, published whole or not at all."""

from cluster.checkpoint.catalog import (
    CheckpointInfo,
    clean_leftovers,
    find_checkpoint,
    list_checkpoints,
    newest_verified,
    reject,
    rejected_for_loss,
    steps_to_delete,
    verify,
)
from cluster.checkpoint.manifest import Manifest
from cluster.checkpoint.reader import CheckpointReader
from cluster.checkpoint.writer import CheckpointWriter

__all__ = [
    "CheckpointInfo",
    "CheckpointReader",
    "CheckpointWriter",
    "Manifest",
    "clean_leftovers",
    "find_checkpoint",
    "list_checkpoints",
    "newest_verified",
    "reject",
    "rejected_for_loss",
    "steps_to_delete",
    "verify",
]
