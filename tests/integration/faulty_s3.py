"""An S3 server (moto) that can be told to fail, to be slow and to keep its answers, and knows what it was asked.

In a thread of the test process, or in a process of its own (`python faulty_s3.py PORT`), which is told over HTTP.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import re
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

CONTROL_PATH = "/-faults-"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_NUMBERS = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to requests that match, until it has happened so often."""

    kind: Literal["error", "lost", "cut", "slow"]
    """An answer with `status`, nothing done; the same after it was done; no answer at all; done after `seconds`."""
    request: str = ""
    """Pattern searched in `METHOD /bucket/key?query`."""
    times: int | None = None
    """None for ever."""
    chance: float = 1.0
    """Of a request that matches; drawn from `seed`."""
    seed: int = 0
    status: int = 503
    seconds: float = 0.0


class FaultyApp:
    """A WSGI application around moto's."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._faults: list[tuple[Fault, random.Random]] = []
        self._left: list[int | None] = []
        self.requests: list[str] = []
        """All so far, as `METHOD /bucket/key?query`, in the order in which they came."""
        self.struck = 0
        """How many of them met a fault."""

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Replace the faults."""
        with self._lock:
            self._faults = [(fault, random.Random(fault.seed)) for fault in faults]
            self._left = [fault.times for fault, _ in self._faults]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, or do not."""
        query = environ.get("QUERY_STRING", "")
        line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}" + (f"?{query}" if query else "")
        if environ["PATH_INFO"] == CONTROL_PATH:
            return self._control(environ, start_response)
        fault = self._draw(line)
        if fault is None:
            return self._inner(environ, start_response)
        if fault.kind == "slow":
            time.sleep(fault.seconds)
            return self._inner(environ, start_response)
        if fault.kind == "lost":
            b"".join(self._inner(environ, lambda *_: lambda _: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault.kind == "cut":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("503 Fault", [])
            return []
        body = b"<Error><Code>ItWasToldTo</Code></Error>"
        start_response(f"{fault.status} Fault", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _draw(self, line: str) -> Fault | None:
        with self._lock:
            self.requests.append(line)
            for number, (fault, draw) in enumerate(self._faults):
                left = self._left[number]
                if left == 0 or not re.search(fault.request, line) or draw.random() >= fault.chance:
                    continue
                self._left[number] = None if left is None else left - 1
                self.struck += 1
                return fault
        return None

    def _control(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT":
            length = int(environ["CONTENT_LENGTH"])
            self.set_faults(Fault(**each) for each in json.loads(environ["wsgi.input"].read(length)))
        with self._lock:
            body = json.dumps({"struck": self.struck, "requests": len(self.requests)}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


@dataclass(frozen=True, kw_only=True)
class FaultyS3:
    """The server while it runs in this process."""

    url: str
    app: FaultyApp

    @property
    def environment(self) -> Mapping[str, str]:
        """What leads a process to it."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def new_bucket(self) -> str:
        """URI of an empty bucket that nobody else uses."""
        name = f"faulty-{os.getpid()}-{next(_NUMBERS)}"
        create_bucket(self.url, name)
        self.app.requests.clear()
        return f"s3://{name}"

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Have requests fail while the block runs."""
        self.app.set_faults(faults)
        try:
            yield
        finally:
            self.app.set_faults(())

    def asked(self) -> list[str]:
        """Requests since the last call, without the bucket: `PUT key`, `LIST prefix`, `DELETE` of several."""
        lines = [_short(line) for line in self.app.requests]
        self.app.requests.clear()
        return lines


def _short(line: str) -> str:
    method, _, target = line.partition(" ")
    path, _, query = target.partition("?")
    key = path.lstrip("/").partition("/")[2]
    if method == "GET" and "list-type" in query:
        prefix = re.search(r"prefix=([^&]*)", query)
        return "LIST " + (urllib.request.unquote(prefix[1]) if prefix else "")
    return f"{method} {key}".strip() if not key or method != "POST" else f"POST {key}?{query.split('=')[0]}"


def create_bucket(url: str, name: str) -> None:
    """Create a bucket at a server."""
    urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT")).close()


def set_faults(url: str, *faults: Fault) -> None:
    """Tell a server in another process what to do from now on."""
    data = json.dumps([asdict(fault) for fault in faults]).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}{CONTROL_PATH}", data=data, method="PUT")).close()


def struck(url: str) -> int:
    """How many requests have met a fault at a server in another process."""
    with urllib.request.urlopen(f"{url}{CONTROL_PATH}") as answer:
        return int(json.load(answer)["struck"])


@contextmanager
def serve(port: int = 0) -> Iterator[FaultyS3]:
    """Run the server in this process while the block runs."""
    from moto.moto_server.threaded_moto_server import MotoRequestHandler
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = FaultyApp(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield FaultyS3(url=f"http://127.0.0.1:{server.server_port}", app=app)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Serve at the port of the command line until the process is ended."""
    with serve(int(sys.argv[1])) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
