"""Where each file of a checkpoint is read from, and that no byte is read that was not found to be as it was written.

Damaged checkpoints are rejected: that means that nothing is loaded whose hash is not the manifest's. Storage and local
copies meet it together: a copy with that hash *is* the file. So before any state is set every file was hashed whole by
some rank, at its local copy or in the storage; and a rank then reads a file only from a place that was hashed: a local
copy by this very process, the storage by any rank. Damage in the storage to a file that every reader has a good copy of
is not found by a restart, and harms none; `checkpoint verify` reads the storage alone and finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.checkpoint.catalog import CheckpointInfo, reject_if_possible, verify
from cluster.checkpoint.local_copy import LocalCopies
from cluster.checkpoint.manifest import FileRecord
from cluster.errors import CheckpointDamagedError, CheckpointError, CheckpointUnreadableError
from cluster.storage.operations import StoragePath
from data_pipeline.publish import file_hashes


class VerifiedFiles:
    """The files of one checkpoint, on one rank.

    Args:
        info: The checkpoint, in the storage.
        local: This node's copies; None where there are none.
    """

    def __init__(self, info: CheckpointInfo, local: LocalCopies | None = None) -> None:
        self._info = info
        self._local = local
        self._records = {record.path: record for record in info.manifest.files} if info.manifest is not None else {}
        self._good: dict[str, StoragePath] = {}
        self._vouched: frozenset[str] = frozenset()
        self._rank = 0

    def verify_share(self, rank: int, world_size: int) -> CheckpointError | None:
        """Hash this rank's share of the files; the ranks together hash all of them.

        Returns:
            What is wrong with them, or None: damage, or that one cannot be read here and now, which proves nothing.
        """
        self._rank = rank
        if self._info.manifest is None or self._info.problem is not None:
            return self._info.error()
        try:
            for record in self._info.manifest.files[rank::world_size]:
                self._good[record.path] = self._find(record)
        except CheckpointError as error:
            return error
        return None

    def found_in_storage(self) -> list[float]:
        """For each of the manifest's files 1 if this rank found it good in the storage, else 0; to be summed up."""
        return [float(self._good.get(path) == self._stored(path)) for path in self._records]

    def vouch(self, found_in_storage: Sequence[float]) -> None:
        """Take the sums over all ranks: what any of them found good in the storage may be read there."""
        self._vouched = frozenset(path for path, count in zip(self._records, found_in_storage, strict=True) if count)

    def path(self, relative: str) -> StoragePath:
        """Where to read a file.

        Raises:
            CheckpointDamagedError: No copy of it is whole; the checkpoint was rejected, for the next attempt.
            CheckpointUnreadableError: It cannot be read here and now.
        """
        if relative not in self._good:
            try:
                self._good[relative] = self._find(self._records[relative])
            except CheckpointDamagedError as error:
                reject_if_possible(self._info, str(error), kind="damage")
                raise
        return self._good[relative]

    def _find(self, record: FileRecord) -> StoragePath:
        if self._local is not None:
            copy = self._local.path(self._info.step, record.path)
            if _is_good(copy, record):
                return copy
        if record.path not in self._vouched:
            try:
                verify(self._info, [record])
            except CheckpointUnreadableError as error:
                raise CheckpointUnreadableError(f"rank {self._rank}: {error}") from error
        return self._stored(record.path)

    def _stored(self, relative: str) -> StoragePath:
        return self._info.directory / relative


def _is_good(copy: Path, record: FileRecord) -> bool:
    try:
        return copy.stat().st_size == record.size_bytes and file_hashes(copy).hash == record.hash
    except OSError:
        return False
