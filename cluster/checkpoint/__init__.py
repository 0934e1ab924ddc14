"""Checkpoints: one format for every topology, published whole or not at all."""

from cluster.checkpoint.catalog import (
    CheckpointInfo,
    find_checkpoint,
    list_checkpoints,
    newest_verified,
    reject,
    reject_if_possible,
    rejected_for_loss,
    verify,
)
from cluster.checkpoint.leftovers import clean_leftovers
from cluster.checkpoint.local_copy import LocalCopies
from cluster.checkpoint.manifest import Manifest
from cluster.checkpoint.reader import CheckpointReader
from cluster.checkpoint.retention import steps_to_delete
from cluster.checkpoint.sources import VerifiedFiles
from cluster.checkpoint.writer import CheckpointWriter, WriterHooks

__all__ = [
    "CheckpointInfo",
    "CheckpointReader",
    "CheckpointWriter",
    "LocalCopies",
    "Manifest",
    "VerifiedFiles",
    "WriterHooks",
    "clean_leftovers",
    "find_checkpoint",
    "list_checkpoints",
    "newest_verified",
    "reject",
    "reject_if_possible",
    "rejected_for_loss",
    "steps_to_delete",
    "verify",
]
