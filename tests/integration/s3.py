"""A real S3 server (moto) on the loopback, in a thread of the test process, for this process and those it starts."""

from __future__ import annotations

import itertools
import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
)


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """The server while it runs; the environment names it."""

    url: str
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def new_bucket(self) -> str:
        """URI of an empty bucket that nobody else uses."""
        name = f"bucket-{os.getpid()}-{next(self._numbers)}"
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT")).close()
        return f"s3://{name}"


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """Run the server while the block runs, and let the environment lead to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ |= dict(zip(_VARIABLES, (url, "key", "secret", "us-east-1"), strict=True))
    try:
        yield S3Server(url=url)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.stop()
