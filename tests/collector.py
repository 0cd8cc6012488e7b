# SPDX-License-Identifier: Apache-2.0
"""A collector of traces on loopback, for tests: it decodes what is sent, or behaves badly."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from serving import until

QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "5"}
"""The environment in which spans go out soon."""


class Collector:
    """Takes spans at ``url``, by OTLP over HTTP.

    Attributes:
        manner: well; silent: it reads, and never answers; endless: its answer has no end;
            elsewhere: it redirects.
        spans: what has come, in order; resources: of each, beside it.
        asked: requests that have come.
    """

    def __init__(self) -> None:
        self.manner: Literal["well", "silent", "endless", "elsewhere"] = "well"
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.asked = 0
        self.gone = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector._take(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.asked += 1
        manner = self.manner
        if manner == "silent":
            self.gone.wait()
            return
        if manner == "elsewhere":
            request.send_response(307)
            request.send_header("Location", "http://127.0.0.1:9/v1/traces")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        assert request.path == "/v1/traces"
        sent = ExportTraceServiceRequest.FromString(body)
        for each in sent.resource_spans:
            for scope in each.scope_spans:
                for span in scope.spans:
                    self.resources.append(attributes(each.resource))
                    self.spans.append(span)
        request.send_response(200)
        request.end_headers()
        with contextlib.suppress(OSError):
            while manner == "endless" and not self.gone.is_set():
                request.wfile.write(bytes(65_536))

    def wait(self, spans: int) -> list[Any]:
        """Wait for so many spans; all that have come."""
        until(lambda: len(self.spans) >= spans, f"for {spans} spans")
        return self.spans


def attributes(holder: Any) -> dict[str, Any]:
    """Of a span, or a resource, as Python's values."""
    return {each.key: _value(each.value) for each in holder.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector, as long as the block lasts."""
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.gone.set()
        made.server.shutdown()
        made.server.server_close()
        thread.join()


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """An address at which nobody listens, though it is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
