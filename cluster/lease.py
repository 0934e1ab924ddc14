"""The lease on a run: one driver at a time, on whatever machine, and a fencing token that its workers carry.

`RUN/lease/0000000007.json` says who holds token 7. A driver takes a run by creating the file of the next token, which
storage grants to one creator only, and shows that it lives by rewriting the file every few seconds. Whether
another machine's driver lives is judged by watching its file change, never by comparing clocks. A driver that was
taken for dead (stopped, cut off) finds a higher token and ends; its workers publish nothing any more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.errors import RunBusyError, StorageError
from cluster.process_clock import start_ticks
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, create_exclusively, list_names, make_directory, write_atomically
from cluster.storage.retry import retried

logger = logging.getLogger(__name__)

RENEW_SECONDS = 4.0
EXPIRY_SECONDS = 20.0
"""A lease of another machine that was not renewed for so long while we watched it has lapsed."""
_WATCH_SECONDS = 0.5
_READINGS = 10
"""Times that a lease is read anew because a newer one took its place between listing and reading."""
_DIRECTORY = "lease"


@dataclass(frozen=True, kw_only=True)
class LeaseRecord:
    """What a lease file says."""

    token: int
    """Rises by one with each holder."""
    holder: str
    """Random name of the holding driver."""
    place: str
    """Machine, boot and process namespace in which `process` means something."""
    process: int
    process_start: int
    """Start of the process in clock ticks since boot, because process numbers are used again."""
    job: str | None
    """Submission id, where the driver runs as a Ray job."""
    renewals: int
    released: bool

    @property
    def description(self) -> str:
        """The holder in words."""
        host = self.place.split("/")[0]
        return f"process {self.process} on {host}" + (f" (Ray job {self.job})" if self.job else "")


class Lease:
    """A lease that this driver holds, renewed by a thread until it is released."""

    def __init__(self, run_directory: StoragePath, record: LeaseRecord) -> None:
        self._run_directory = run_directory
        self._record = record
        self._lost = threading.Event()
        self._in_doubt = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def holder(self) -> str:
        """Fencing token of this driver and its workers."""
        return self._record.holder

    @property
    def token(self) -> int:
        """How many drivers have held the run, this one included."""
        return self._record.token

    def check(self) -> None:
        """Make sure that the run is still ours, as far as the storage can tell now.

        A lease that cannot be read says nothing: the next check asks again, and the token keeps two drivers apart
        meanwhile.

        Raises:
            RunBusyError: Another driver took it.
        """
        try:
            newest = newest_record(self._run_directory)
        except OSError as error:
            if not self._in_doubt:
                logger.warning("the lease of %s cannot be read now: %s", self._run_directory, error.strerror or error)
            self._in_doubt, newest = True, None
        else:
            self._in_doubt = False
            if not self._is_ours(newest):
                self._lost.set()
        if self._lost.is_set():
            raise self._taken_over(newest)

    def confirm(self) -> None:
        """Make sure that the run is still ours before something is removed: a lease that cannot be read is none.

        Raises:
            RunBusyError: Another driver took it.
            StorageError: The storage cannot tell, however often it is asked.
        """
        try:
            newest = _patient_record(self._run_directory)
        except OSError as error:
            raise StorageError(
                f"the lease of {self._run_directory} cannot be read: {error.strerror or error}. Nothing more is "
                "removed there, as another command may have taken it. Give the same command again when it answers."
            ) from error
        if self._lost.is_set() or not self._is_ours(newest):
            self._lost.set()
            raise self._taken_over(newest)

    def _taken_over(self, newest: LeaseRecord | None) -> RunBusyError:
        return RunBusyError(
            f"run {self._run_directory} was taken over by {newest.description if newest else 'another command'} "
            f"while this command did not answer for more than {EXPIRY_SECONDS:.0f} s. This command ends and "
            "changes nothing more; the run goes on there."
        )

    def pause(self) -> None:
        """Renew no longer, so that the directory can be moved; the lease lapses unless it is taken again soon."""
        self._ended.set()
        self._thread.join()

    def release(self) -> None:
        """Give the run back."""
        self.pause()
        with contextlib.suppress(OSError):
            if not self._lost.is_set() and self._is_ours(newest_record(self._run_directory)):
                self._write(released=True)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                if not self._is_ours(newest_record(self._run_directory)):
                    self._lost.set()
                    return
                self._write(released=False)
            except OSError as error:  # the token still keeps two drivers apart where it matters, at every publication
                logger.warning("the lease of %s could not be renewed: %s", self._run_directory, error)

    def _is_ours(self, newest: LeaseRecord | None) -> bool:
        """Whether the lease with the highest token is this one; one without content can be nobody else's."""
        return newest is not None and newest.token == self.token and newest.holder in (self.holder, "")

    def _write(self, *, released: bool) -> None:
        facts = {**asdict(self._record), "renewals": self._record.renewals + 1, "released": released}
        self._record = LeaseRecord(**facts)
        write_atomically(_file(self._run_directory, self._record.token), json.dumps(facts, indent=1).encode())


@contextmanager
def hold(
    run_directory: StoragePath,
    *,
    job: str | None = None,
    say: Callable[[str], None] = logger.info,
    expiry_seconds: float = EXPIRY_SECONDS,
    above: int = 0,
) -> Iterator[Lease]:
    """Hold a run against every other driver while the block runs.

    Args:
        run_directory: An existing directory that all drivers see, or a prefix of an object store.
        job: This driver's submission id, for the messages of others.
        say: Told that a holder on another machine is being watched, which takes a while.
        expiry_seconds: How long a silent holder is watched.
        above: The new token is higher than this; for a directory that takes the place of one that was held.

    Raises:
        RunBusyError: Another driver holds it and lives.
    """
    lease = Lease(run_directory, _take(run_directory, job, say, expiry_seconds, above))
    try:
        yield lease
    finally:
        lease.release()


def holds(run_directory: StoragePath, holder: str) -> bool:
    """Whether the newest token of a run is that of `holder`; for drivers and for their workers.

    Raises:
        OSError: The storage cannot tell now.
    """
    newest = newest_record(run_directory)
    return newest is not None and newest.holder == holder


def newest_record(run_directory: StoragePath) -> LeaseRecord | None:
    """The lease with the highest token; None where no driver ever held the run.

    Raises:
        OSError: The storage cannot tell now.
    """
    readings = 0
    while tokens := _tokens(run_directory):
        try:
            return _read(run_directory, tokens[-1])
        except FileNotFoundError:  # replaced by a newer token between listing and reading
            readings += 1
            if readings == _READINGS:
                raise
    return None


def _patient_record(run_directory: StoragePath) -> LeaseRecord | None:
    """The lease with the highest token, for those who can wait for a storage that does not answer for a moment."""
    return retried(partial(newest_record, run_directory), f"reading the lease of {run_directory}")


def live_holder(run_directory: StoragePath, expiry_seconds: float = EXPIRY_SECONDS) -> LeaseRecord | None:
    """The driver that holds a run and lives, None where the run is free; watches where it cannot know at once."""
    record = _patient_record(run_directory)
    if record is None or record.released:
        return None
    if record.place == _place():
        return record if start_ticks(record.process) == record.process_start else None
    deadline = time.monotonic() + expiry_seconds
    while time.monotonic() < deadline:
        time.sleep(_WATCH_SECONDS)
        try:
            now = newest_record(run_directory)
        except OSError:  # what cannot be read could not be renewed either: the watch begins anew
            now, deadline = _patient_record(run_directory), time.monotonic() + expiry_seconds
        if now is not None and now.released:
            return None
        if now not in (None, record):  # none: the directory is being set aside by its holder
            return now
    return None


def forget(run_directory: StoragePath) -> None:
    """Remove what leases left in a directory where no run was begun."""
    for token in _tokens(run_directory):
        with contextlib.suppress(OSError):
            if _read(run_directory, token).released:
                _file(run_directory, token).unlink(missing_ok=True)
    directory = run_directory / _DIRECTORY
    if not isinstance(directory, ObjectPath):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _take(
    run_directory: StoragePath, job: str | None, say: Callable[[str], None], expiry_seconds: float, above: int
) -> LeaseRecord:
    while True:
        before = _patient_record(run_directory)
        if before is not None and not before.released and before.place != _place():
            say(f"the run was held by {before.description}: watching for up to {expiry_seconds:.0f} s whether it lives")
        if (alive := live_holder(run_directory, expiry_seconds)) is not None:
            raise RunBusyError(
                f"run {run_directory} is being written by {alive.description}: two drivers would spoil each other's "
                "record. Wait for it, stop it, or give this run another name."
            )
        record = LeaseRecord(
            token=max(above, before.token if before else 0) + 1,
            holder=secrets.token_hex(8),
            place=_place(),
            process=os.getpid(),
            process_start=start_ticks(os.getpid()) or 0,
            job=job,
            renewals=0,
            released=False,
        )
        if not _create(run_directory, record):
            continue
        newest = retried(partial(_remove_older, run_directory, record.token), f"taking {run_directory}")
        if newest == record.token:  # a driver that slept since it read the last token is behind by now
            return record


def _remove_older(run_directory: StoragePath, token: int) -> int:
    """Remove the files of lower tokens; the highest token that is there."""
    tokens = _tokens(run_directory)
    for each in tokens:
        if each < token:
            _file(run_directory, each).unlink(missing_ok=True)
    return tokens[-1]


def _create(run_directory: StoragePath, record: LeaseRecord) -> bool:
    """Create the file of a token; False where another driver was first."""
    path = _file(run_directory, record.token)
    data = json.dumps(asdict(record), indent=1).encode()
    make_directory(path.parent)
    if not isinstance(path, ObjectPath):
        return create_exclusively(path, data)
    # A store that takes the file and loses its answer is asked again, and the holder's name tells our own from others'.
    return retried(lambda: create_exclusively(path, data), f"taking {path}")


def _tokens(run_directory: StoragePath) -> list[int]:
    try:
        names = list_names(run_directory / _DIRECTORY)  # a glob hides what the storage has to say
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _file(run_directory: StoragePath, token: int) -> StoragePath:
    return run_directory / _DIRECTORY / f"{token:010d}.json"


def _read(run_directory: StoragePath, token: int) -> LeaseRecord:
    """A lease file; one that is being created, or was left half created, belongs to somebody unknown."""
    try:
        facts: dict[str, Any] = json.loads(_file(run_directory, token).read_bytes())
        return LeaseRecord(**facts)
    except (ValueError, TypeError):
        return LeaseRecord(
            token=token,
            holder="",
            place="an unknown machine",
            process=0,
            process_start=0,
            job=None,
            renewals=0,
            released=False,
        )


def _place() -> str:
    """Host, boot and process namespace: where process numbers can be compared."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{os.uname().nodename}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
