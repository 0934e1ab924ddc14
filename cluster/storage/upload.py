"""An object written piece by piece."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.storage.object_path import ObjectPath, translated
from cluster.storage.traffic import count_moved

_LEAST_PART_BYTES = 16 << 20
_MOST_PARTS = 9_000
"""Of one upload; S3 allows 10,000."""
_UPLOADS_AT_ONCE = 4


class Upload:
    """An upload in parts; an error of the store comes out as an `OSError` at the part that met it.

    What was uploaded of one that is not closed is no object. Stores keep it until a rule of the bucket removes it.

    Args:
        path: The object.
        size_bytes: About how long it becomes.
    """

    def __init__(self, path: ObjectPath, size_bytes: int) -> None:
        import obstore

        part_bytes = max(_LEAST_PART_BYTES, -(-size_bytes // _MOST_PARTS))
        self._path = path
        self._written_bytes = 0
        self._sink = obstore.open_writer(path.store, path.key, buffer_size=part_bytes, max_concurrency=_UPLOADS_AT_ONCE)

    def write(self, data: memoryview, /) -> None:
        """Append bytes."""
        with self._known():
            self._sink.write(bytes(data))  # a copy: the library reads it later, and our memory is used again
        self._written_bytes += len(data)
        count_moved(len(data))

    def close(self) -> None:
        """Make it an object."""
        try:
            with self._known():
                self._sink.close()
        except OSError as error:
            if error.errno != errno.ESTALE or not self._is_there():
                raise

    def _is_there(self) -> bool:
        """Whether the upload ended well, and only the store's answer was lost."""
        try:
            with translated(self._path):
                return self._path.store.head(self._path.key)["size"] == self._written_bytes
        except FileNotFoundError:
            return False

    @contextmanager
    def _known(self) -> Iterator[None]:
        try:
            with translated(self._path):
                yield
        except FileNotFoundError as error:  # no such upload: ended already, or removed; from its beginning it may work
            raise OSError(errno.ESTALE, "the store knows no such upload any more", str(self._path)) from error
