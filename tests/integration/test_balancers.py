# SPDX-License-Identifier: Apache-2.0
"""The balancers' configurations in deploy/fleet do what docs/scale.md says of them.

Before servers that answer as ours do, without its engines; bench/fleet.py runs the real thing.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from documents import ROOT
from programs import installed
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

FLEET = ROOT / "deploy" / "fleet"
PATIENCE_S = 60.0


class Stub:
    """A server that answers checks and echoes what sessions say.

    Attributes:
        ready: what /health/ready says; refuses: upgrades are answered by 503.
    """

    def __init__(self, name: str) -> None:
        self.name, self.ready, self.refuses = name, True, False
        self.checked = 0
        self._server = serve(self._echo, "127.0.0.1", 0, process_request=self._answer)
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _echo(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            connection.send(self.name)
            for message in connection:
                connection.send(message)

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        found = re.fullmatch(r"/health/ready\?unready=(\d+)", request.path)
        if found is not None:
            self.checked += 1
            status = 200 if self.ready else int(found[1])
            answer = connection.respond(status, "")
            if not self.ready:
                answer.headers["X-Envoy-Degraded"] = "true"
            return answer
        if self.refuses:
            return connection.respond(503, "the server is going away")  # type: ignore[arg-type]
        return None

    def vanish(self) -> None:
        """Nothing answers any more; sessions that there are go on, for all that it knows."""
        self._server.shutdown()
        self._thread.join(PATIENCE_S)


def until(found: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def arguments(name: str, folder: Path, port: int, stubs: list[Stub]) -> list[str]:
    """The balancer's, with its configuration put on this machine's loopback."""
    source = FLEET / ("haproxy.cfg" if name == "haproxy" else "envoy.yaml")
    text = source.read_text()
    for number, stub in enumerate(stubs):
        here = f"10.77.0.{11 + number}"
        assert here in text
        text = text.replace(f"{here}:8086", f"127.0.0.1:{stub.port}")
        text = text.replace(f"{here}, port_value: 8086", f"127.0.0.1, port_value: {stub.port}")
    assert "10.77" not in text
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}")
    text = text.replace("0.0.0.0, port_value: 8080", f"127.0.0.1, port_value: {port}")
    file = folder / source.name
    file.write_text(text)
    if name == "haproxy":
        return ["-db", "-f", str(file)]
    return ["-c", str(file), "--concurrency", "1", "--disable-hot-restart"]


class World:
    """Three servers and a balancer before them."""

    def __init__(self, name: str, program: str, folder: Path) -> None:
        self.stubs = [Stub(letter) for letter in "abc"]
        self.name, self.port = name, free_port()
        self.sessions: list[tuple[str, ClientConnection]] = []
        self._opened = contextlib.ExitStack()
        command = [program, *arguments(name, folder, self.port, self.stubs)]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def begin(self) -> None:
        """Wait until the balancer asks all servers how they do."""

        def checked() -> bool:
            assert self.process.poll() is None, "the balancer has ended"
            return all(stub.checked > 1 for stub in self.stubs)

        until(checked, "servers are checked")

    def session(self) -> str:
        """Begin a session; who serves it."""
        url = f"ws://127.0.0.1:{self.port}/ws"
        connection = self._opened.enter_context(
            connect(url, proxy=None, compression=None, open_timeout=PATIENCE_S)
        )
        who = str(connection.recv(PATIENCE_S))
        self.sessions.append((who, connection))
        return who

    def of(self, name: str) -> list[ClientConnection]:
        """Sessions of a server."""
        return [connection for who, connection in self.sessions if who == name]

    def seen(self, stub: Stub) -> None:
        """Wait until the balancer has seen how it does, more than once."""
        before = stub.checked
        until(lambda: stub.checked > before + 3, "the balancer looks again")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self._opened.close()
        for stub in self.stubs:
            stub.vanish()


@pytest.fixture(params=["haproxy", "envoy"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(request.param, installed(request.param), tmp_path)
    try:
        made.begin()
        yield made
    except BaseException:
        print((tmp_path / "log").read_text())
        raise
    finally:
        made.close()


def lives(connection: ClientConnection) -> bool:
    connection.send("still there?")
    return bool(connection.recv(PATIENCE_S) == "still there?")


def test_who_drains_keeps_what_it_has_and_gets_nothing_new(world: World) -> None:
    spread = Counter(world.session() for _ in range(12))
    if world.name == "haproxy":
        assert spread == {"a": 4, "b": 4, "c": 4}
    assert set(spread) == {"a", "b", "c"}, "of two at random, but of all in the end"
    draining, other = world.stubs[0], world.stubs[1]
    draining.ready = False
    world.seen(draining)
    assert "a" not in {world.session() for _ in range(6)}
    assert all(lives(connection) for connection in world.of("a"))

    # One whose check has not been seen yet sends clients away: another one takes them.
    other.refuses = True
    assert {world.session() for _ in range(3)} == {"c"}


def test_who_is_gone_loses_its_sessions_at_once(world: World) -> None:
    if world.name == "envoy":
        pytest.skip("Envoy closes no WebSocket of a server that fails; TCP tells it, see there")
    for _ in range(6):
        world.session()
    assert len(world.of("a")) == 2
    world.stubs[0].vanish()
    for connection in world.of("a"):
        with pytest.raises(ConnectionClosed):
            connection.recv(PATIENCE_S)
    assert all(lives(connection) for name in "bc" for connection in world.of(name))
    assert {world.session() for _ in range(4)} == {"b", "c"}
