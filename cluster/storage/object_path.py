"""A path in an object store, with those words of `pathlib` that runs use, and the store's errors as `OSError`."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cluster.errors import StorageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<bucket>[^/]+)(?:/(?P<key>.*))?", re.DOTALL)
_STATUS = re.compile(r"status code: (\d{3})")
_REQUEST_SECONDS = 60
_CONNECT_SECONDS = 5
_TRIES_SECONDS = 12
"""The library's own tries are few and quick, for a connection that was dropped; who can wait tries again after them."""


class ObjectPath:
    """An object, or all objects below a prefix, named by a URI such as `s3://bucket/runs/austen`.

    Paths can be pickled; each process makes its own connections. Credentials, region and endpoint come from where the
    store's own tools look for them: environment variables, the node's role.

    Args:
        uri: Scheme, bucket and key.

    Raises:
        StorageError: It is no URI of a store that is known.
    """

    def __init__(self, uri: str) -> None:
        match = _URI.fullmatch(uri)
        if match is None or match["scheme"] not in SCHEMES:
            raise StorageError(
                f"storage {uri!r} names no object store that is known: write {'://, '.join(SCHEMES)}://, then the "
                "bucket and a path in it, as in s3://bucket/runs; or give a directory."
            )
        parts = [part for part in (match["key"] or "").split("/") if part]
        if ".." in parts or "." in parts:
            raise StorageError(f"storage {uri!r} holds a part `.` or `..`, which means nothing in an object store.")
        self._root = f"{match['scheme']}://{match['bucket']}"
        self.key = "/".join(parts)
        """Name within the bucket, without slashes at its ends."""

    @property
    def bucket(self) -> str:
        """Scheme and bucket: what one connection serves."""
        return self._root

    @property
    def name(self) -> str:
        """Last part."""
        return self.key.rsplit("/", 1)[-1]

    @property
    def parent(self) -> ObjectPath:
        """The path without its last part; the bucket is its own parent."""
        return ObjectPath(f"{self._root}/{self.key.rpartition('/')[0]}")

    def __truediv__(self, other: str | os.PathLike[str]) -> ObjectPath:
        """The path below this one."""
        return ObjectPath(f"{self}/{os.fspath(other)}")

    def joinpath(self, *parts: str) -> ObjectPath:
        """The path below this one."""
        return ObjectPath("/".join([str(self), *parts]))

    def with_name(self, name: str) -> ObjectPath:
        """The path with another last part."""
        return self.parent / name

    def relative_to(self, other: ObjectPath) -> str:
        """The part of the path below another one.

        Raises:
            ValueError: It is not below it.
        """
        if not str(self).startswith(f"{other}/"):
            raise ValueError(f"{self} is not below {other}")
        return str(self)[len(str(other)) + 1 :]

    def absolute(self) -> ObjectPath:
        """Itself."""
        return self

    def exists(self) -> bool:
        """Whether there is such an object, or any below it."""
        return self._head() is not None or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return self._head() is not None

    def is_dir(self) -> bool:
        """Whether there is any object below it."""
        with translated(self):
            return next(iter(self.store.list(f"{self.key}/" if self.key else None, chunk_size=1)), None) not in (
                None,
                [],
            )

    def read_bytes(self) -> bytes:
        """The object's content.

        Raises:
            FileNotFoundError: There is none.
            OSError: The store cannot give it now.
        """
        with translated(self):
            return bytes(self.store.get(self.key).bytes())

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object's content as text."""
        return self.read_bytes().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object; stores do not tell whether there was one, so that `missing_ok=False` asks first."""
        if not missing_ok and self._head() is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        with translated(self), contextlib.suppress(FileNotFoundError):
            self.store.delete(self.key)

    @property
    def store(self) -> ObjectStore:
        """This process's connection to the bucket."""
        return _store(self._root)

    def _head(self) -> Any:
        try:
            with translated(self):
                return self.store.head(self.key) if self.key else None
        except FileNotFoundError:
            return None

    def __str__(self) -> str:
        return f"{self._root}/{self.key}" if self.key else self._root

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __lt__(self, other: ObjectPath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[type[ObjectPath], tuple[str]]:
        return (ObjectPath, (str(self),))


@contextlib.contextmanager
def translated(path: ObjectPath) -> Iterator[None]:
    """Errors of the store as `OSError`, so that it matters to nobody above whether a path is a file or an object.

    What may pass by itself (no answer, 429, 5xx) carries a number that counts as transient; what the store refuses
    (401, 403, other 4xx) does not.

    Raises:
        FileNotFoundError: There is no such object, or no such bucket.
        FileExistsError: There is one already, where it was to be created.
        PermissionError: The credentials are missing, wrong or do not suffice.
        OSError: Anything else.
    """
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
    except (exceptions.BaseError, OSError) as error:  # uploads in parts end with an `OSError` that has no number
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = str(error).split("\n", 1)[0]
        status = int(match[1]) if (match := _STATUS.search(said)) else None
        denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError)
        if isinstance(error, denied) or status in (401, 403):
            raise PermissionError(errno.EACCES, f"the store refuses it ({said})", str(path)) from error
        passing = status is None or status in (408, 425, 429) or status >= 500
        raise OSError(errno.EREMOTEIO if passing else errno.EINVAL, said, str(path)) from error


@lru_cache(maxsize=16)
def _store(root: str) -> ObjectStore:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        return from_url(
            root,
            client_options={
                "allow_http": True,  # where an endpoint is given with http, as inside a cluster
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                "timeout": timedelta(seconds=_REQUEST_SECONDS),
            },
            retry_config={
                "max_retries": 3,
                "retry_timeout": timedelta(seconds=_TRIES_SECONDS),
                "backoff": {
                    "base": 2,
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=2),
                },
            },
        )
    except (BaseError, ValueError) as error:
        said = str(error).split("\n", 1)[0]
        raise StorageError(
            f"storage {root} cannot be addressed: {said}. Give the store's account, region or endpoint in its own "
            "environment variables (AWS_..., GOOGLE_..., AZURE_...)."
        ) from error
