"""An S3 server of our own, moto's, that remembers every request: what a run asks of its storage."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import unquote

import fsspec
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

BUCKET = "rehearsal"


class Request(NamedTuple):
    """One that was answered."""

    time: float
    """Seconds since the epoch, when it came."""
    method: str
    """GET, HEAD, PUT, POST or DELETE; LIST where it asks for names."""
    key: str


class ObjectStore:
    """What came to the server, in the order of coming."""

    url = f"s3://{BUCKET}"

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.bytes_written = 0

    def counted(self, application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """A WSGI application whose requests are remembered."""

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")[2]
            method = environ["REQUEST_METHOD"]
            if method == "GET" and not key:
                method = "LIST"
            self.requests.append(Request(time.time(), method, key))
            if method == "PUT":
                self.bytes_written += int(environ.get("CONTENT_LENGTH") or 0)
            return application(environ, start_response)

        return answer

    def written(self, pattern: str) -> dict[str, float]:
        """When each of the files that a pattern names was first written; asks the server for nothing."""
        found: dict[str, float] = {}
        for request in list(self.requests):
            if request.method == "PUT" and fnmatch(request.key, pattern):
                found.setdefault(request.key, request.time)
        return found


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server with one empty bucket, which every process that is started within the block can reach."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = ObjectStore()
    application = store.counted(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "rehearsal",
        "AWS_SECRET_ACCESS_KEY": "rehearsal",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with patch.dict(os.environ, environment):
            fsspec.filesystem("s3").mkdir(BUCKET)
            yield store
    finally:
        server.shutdown()
        thread.join()
