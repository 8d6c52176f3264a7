"""An S3-compatible server of our own, moto's, spoken to by s3fs: one that is well, or throttles, or is away."""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class ObjectStore:
    """The server of one empty bucket."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application, self._rng = application, random.Random(0)
        self._server: Any = None
        self.url = ""
        self.busy_share = 0.0
        """Share of the requests that are answered with 503."""
        self.answered, self.refused = 0, 0

    def start(self, port: int = 0) -> None:
        serving = pytest.importorskip("werkzeug.serving")
        handler = pytest.importorskip("moto.moto_server.werkzeug_app").MotoRequestHandler
        self._server = serving.make_server("127.0.0.1", port, self._answer, threaded=True, request_handler=handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self._server.server_port

    def stop(self) -> None:
        """From now on nobody listens; what is stored stays."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._rng.random() < self.busy_share:
            self.refused += 1
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        self.answered += 1
        return self._application(environ, start_response)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A bucket that every process that is started within the block can reach."""
    app = pytest.importorskip("moto.moto_server.werkzeug_app")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = ObjectStore(app.DomainDispatcherApplication(app.create_backend_app))
    store.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            bucket = f"bucket-{uuid.uuid4().hex[:8]}"  # moto keeps what earlier servers of this process held
            fsspec.filesystem("s3").mkdir(bucket)
            store.url = f"s3://{bucket}"
            yield store
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        store.stop()


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of such a bucket."""
    with object_store() as store:
        yield store.url
