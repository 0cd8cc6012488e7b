# SPDX-License-Identifier: Apache-2.0
"""A WebSocket client written from RFC 6455 alone, for tests that trust nobody's implementation."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import struct
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server hangs up; times out where it does not."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            found += piece
    return found


class ClosedError(Exception):
    """The server has closed the connection, with this code."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


class RawWebSocket:
    """One connection. Messages are bytes or str; pings are answered."""

    def __init__(self, url: str, timeout_s: float = 60.0, headers: tuple[str, ...] = ()) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16))
        lines = [
            f"GET {parts.path or '/'} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key.decode()}",
            "Sec-WebSocket-Version: 13",
            *headers,
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self.head = head.decode("latin-1")
        assert self.head.startswith("HTTP/1.1 101 "), self.head
        fields = dict(line.lower().split(": ", 1) for line in self.head.split("\r\n")[1:])
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        assert fields["sec-websocket-accept"] == accept.lower()
        assert "sec-websocket-extensions" not in fields
        assert "sec-websocket-protocol" not in fields

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    # ------------------------------------------------------------ frames
    def send_frame(self, opcode: int, payload: bytes, last: bool = True) -> None:
        self.socket.sendall(self.frame(opcode, payload, last))

    @staticmethod
    def frame(opcode: int, payload: bytes, last: bool = True) -> bytes:
        """A frame as clients send it: masked."""
        head = bytes([(0x80 if last else 0) | opcode])
        size = len(payload)
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65_536:
            head += bytes([0x80 | 126]) + struct.pack(">H", size)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", size)
        mask = os.urandom(4)
        repeated = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
        masked = (int.from_bytes(payload, "little") ^ repeated).to_bytes(size, "little")
        return head + mask + masked

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ClosedError(None)
        self._buffer += data

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def receive_frame(self) -> tuple[int, bytes, bool]:
        first, second = self._take(2)
        assert not first & 0x70, "reserved bits"
        assert not second & 0x80, "servers do not mask"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._take(8))
        return first & 0x0F, self._take(size), bool(first & 0x80)

    # ------------------------------------------------------------ messages
    def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.send_frame(TEXT, message.encode())
        else:
            self.send_frame(BINARY, message)

    def receive(self) -> str | bytes:
        """The next message.

        Raises:
            ClosedError: the server has closed.
        """
        kind, parts = 0, []
        while True:
            opcode, payload, last = self.receive_frame()
            if opcode == CLOSE:
                raise ClosedError(struct.unpack(">H", payload[:2])[0] if payload else None)
            if opcode == PING:
                self.send_frame(PONG, payload)
            if opcode in (PING, PONG):
                continue
            kind = kind or opcode
            parts.append(payload)
            if last:
                data = b"".join(parts)
                return data.decode() if kind == TEXT else data

    def reset(self) -> None:
        """Vanish: the server gets an RST instead of a farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
