# SPDX-License-Identifier: Apache-2.0
"""An HTTP server of a folder's files, with ranges and entity tags; and with what goes wrong."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast
from urllib.parse import unquote


class FileServer(ThreadingHTTPServer):
    """Serves ``folder`` on a free port of this machine.

    Attributes:
        ranges: whether it has them.
        most: bytes of an answer's body after which the connection breaks; None: never.
        before: called with each path that is asked for, before it is answered.
        asked: method, path and range of all requests.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.ranges = True
        self.most: int | None = None
        self.before: Callable[[str], None] = lambda path: None
        self.asked: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is none."""


@contextmanager
def serving_files(folder: Path) -> Iterator[FileServer]:
    with FileServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        server = cast(FileServer, self.server)
        wanted = self.headers.get("Range")
        server.asked.append((self.command, self.path, wanted))
        server.before(self.path)
        file = server.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        if not file.is_file():
            self._send(404, b"", head)
            return
        data = file.read_bytes()
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(304, b"", head)
            return
        if self.headers.get("If-Match") not in (None, tag):
            self._send(412, b"", head)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "") if server.ranges else None
        if asked is None:
            self._send(200, data, head, ETag=tag)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "ETag": tag}
        self._send(206, data[first : last + 1], head, **span)

    def _send(self, status: int, data: bytes, head: bool, **headers: str) -> None:
        server = cast(FileServer, self.server)
        self.send_response(status)
        headers |= {
            "Content-Length": str(len(data)),
            "Last-Modified": "Mon, 05 Jan 2026 10:00:00 GMT",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if head:
            return
        if server.most is not None and len(data) > server.most:
            self.wfile.write(data[: server.most])
            self.close_connection = True
            return
        self.wfile.write(data)
