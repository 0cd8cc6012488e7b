# SPDX-License-Identifier: Apache-2.0
"""Each way in, as docs/security.md lists them, refuses whom it has to; and each is in that list.

One server for all: HTTP, streams, gRPC, WebRTC, and LiveKit with a plug-in that joins no room.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jwt", reason="the extra tokens is not installed")
pytest.importorskip("grpc", reason="the extra grpc is not installed")
pytest.importorskip("aiohttp", reason="the extra webrtc is not installed")

import grpc
from aiohttp import web
from aiortc import RTCPeerConnection
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection
from serving import Server, server
from signed import Issuer, put
from typer.main import get_command
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from lipsync_fast.cli.main import app as command_line
from lipsync_fast.frontend.http.app import routes
from lipsync_fast.gateway.livekit.server import ROUTE
from lipsync_fast.gateway.rpc import messages as m
from lipsync_fast.gateway.webrtc.livetalking import LiveTalking
from lipsync_fast.gateway.webrtc.whep import Whep
from lipsync_fast.ipc.status import ServerStatus

pytestmark = pytest.mark.slow
CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENT = (CHECKOUT / "docs" / "security.md").read_text()
ISSUER, AUDIENCE = Issuer("HS256"), "faces"
STRANGER = Issuer("HS256", kid="a stranger")
CONFIG = """
[engines]
spares = 0
[listen]
grpc_ports = [0]
webrtc_ports = [0]
livekit_ports = [0]
proxies = ["127.0.0.1"]
[livekit]
hosts = ["rooms.example"]
[access]
jwt_keys = {keys}
jwt_audience = {audience}
[avatars]
folders = [{folder}]
default = "tiny"
only = ["tiny", "other"]
"""
PLUGIN = """
import asyncio

async def join(livekit_url, livekit_token, *, on_joined, **more):
    on_joined()
    await asyncio.sleep(3600)
"""


# ---------------------------------------------------------------- the table
@dataclass(frozen=True)
class Row:
    """A way in, as the document has it."""

    section: str
    way: str
    asks: str
    avatars: str

    def __str__(self) -> str:
        return f"{self.section}: {self.way}"


def rows() -> list[Row]:
    """All with a column for avatars: those by network."""
    found, section = [], ""
    for line in DOCUMENT.partition("## Ways in")[2].splitlines():
        if line.startswith("### "):
            section = line.removeprefix("### ")
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 6 and cells[0].startswith("`"):
            found.append(Row(section, cells[0].strip("`"), cells[1], cells[2]))
    return found


def in_document(section: str) -> set[str]:
    return {row.way for row in rows() if row.section == section}


def of_router(add: Callable[[web.UrlDispatcher], None]) -> set[str]:
    """What an application of aiohttp's answers: methods and paths."""
    router = web.UrlDispatcher()
    add(router)
    made = set()
    for route in router.routes():
        assert route.resource is not None
        if route.method == "OPTIONS":
            made.add("OPTIONS *")
        elif route.method != "HEAD":
            made.add(f"{route.method} {route.resource.canonical}")
    return made


def test_every_rpc_and_route_of_the_gateway_has_its_row() -> None:
    services = {health.SERVICE_NAME, reflection.SERVICE_NAME}
    assert in_document("gRPC") == set(m.methods()) | services
    nothing: Any = None
    made = of_router(Whep(nothing, 0).add) | of_router(LiveTalking(nothing, nothing, 0).add)
    assert in_document("WebRTC") == made | {"GET /", "UDP"}
    assert in_document("LiveKit") == {
        f"POST {ROUTE}",
        f"GET {ROUTE}",
        f"DELETE {ROUTE}/{{id}}",
    }


def test_every_command_has_its_row() -> None:
    def below(command: Any, path: tuple[str, ...]) -> Iterator[str]:
        if not hasattr(command, "commands"):
            yield " ".join(path)
            return
        for name, each in command.commands.items():
            yield from below(each, (*path, name))

    listed = DOCUMENT.partition("| command |")[2].splitlines()[2:]
    named = {name for row in listed for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert named == set(below(get_command(command_line), ()))


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`((?:unit|integration|faults|browser)/\w+\.py)`", DOCUMENT)
    assert len(named) > 50
    assert [name for name in set(named) if not (CHECKOUT / "tests" / name).is_file()] == []


# ---------------------------------------------------------------- the server
class World:
    """The server, and who asks it: each time from another address of this machine."""

    def __init__(self, running: Server, status: ServerStatus, sdp: str) -> None:
        self.running, self.status, self.sdp = running, status, sdp
        (gateway,) = status.gateways
        self.ports = {kind: numbers[0] for kind, numbers in gateway.ports.items()}
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.ports['grpc']}")
        self._addresses = itertools.count(2)

    def address(self) -> str:
        number = next(self._addresses)
        return f"127.0.{number >> 8}.{number & 255}"

    def http(
        self, port: int, method: str, path: str, token: str, body: Any = None, kind: str = ""
    ) -> tuple[int, str, bytes]:
        """Status, the word for a refusal, and body of an answer."""
        asked = http.client.HTTPConnection("127.0.0.1", port, 60, (self.address(), 0))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if body is not None:
            headers["Content-Type"] = kind or "application/json"
        try:
            asked.request(method, path, body, headers)
            given = asked.getresponse()
            return given.status, given.headers.get("X-Lipsync-Fast-Code", ""), given.read()
        finally:
            asked.close()

    def websocket(self, url: str, token: str, avatar: str = "") -> str:
        """The word for why a WebSocket, or a session of an avatar, is refused."""
        try:
            with connect(
                url,
                additional_headers={"Authorization": f"Bearer {token}"} if token else {},
                subprotocols=["lipsync.v1"],  # type: ignore[list-item]
                compression=None,
                open_timeout=60,
                source_address=(self.address(), 0),
            ) as socket:
                start = {"type": "session.start", "avatar": avatar, "idle": False}
                socket.send(json.dumps(start))
                told = json.loads(socket.recv(60))
                return str(told.get("code", ""))
        except InvalidStatus as error:
            return error.response.headers.get("X-Lipsync-Fast-Code", "")

    def rpc(self, name: str, token: str, avatar: str = "tiny") -> tuple[str, Any]:
        """The word for a refusal, or the status' name, and the response."""
        method = m.methods()[name]
        make = self.channel.stream_stream if method.client_streaming else self.channel.unary_unary
        stub = make(
            f"/{m.SERVICE}/{name}",
            request_serializer=m.class_of(method.input_type).SerializeToString,
            response_deserializer=m.class_of(method.output_type).FromString,
        )
        request = m.class_of(method.input_type)()
        for field in ("model_name", "package_name"):
            if field in request.DESCRIPTOR.fields_by_name:
                setattr(request, field, avatar)
        if name == "GenerateBatchInference":
            request.frame_ids.append(0)
        if name == "GenerateBatchWithAudio":
            request.frame_count = 1
            request.audio_chunks.extend([bytes(1920)] * 16)
        if name == "GetVideoFrame":
            request.video_type = "full_body"
        metadata = [("x-forwarded-for", f"198.51.100.{next(self._addresses) % 250}")]
        metadata += [("authorization", f"Bearer {token}")] if token else []
        try:
            if method.client_streaming:
                return "", next(stub(iter([request]), timeout=60, metadata=metadata))
            return "", stub(request, timeout=60, metadata=metadata)
        except grpc.RpcError as error:
            told = dict(error.trailing_metadata() or ())
            return str(told.get("x-lipsync-fast-code", error.code().name)), None


def token(seconds: float = 600.0, aud: str = AUDIENCE, sub: str = "anna", **allowed: Any) -> str:
    return ISSUER.token(sub, seconds, aud=aud, lipsync=allowed)


@pytest.fixture(scope="module")
def world(tiny_avatar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("security")
    for name in ("tiny", "other"):
        shutil.copytree(tiny_avatar, folder / "avatars" / name)
    plugins = folder / "stub" / "livekit" / "plugins"
    plugins.mkdir(parents=True)
    for package in (plugins.parent, plugins):
        (package / "__init__.py").touch()
    (plugins / "lipsync_fast.py").write_text(PLUGIN)
    config = CONFIG.format(
        keys=json.dumps(put(folder / "secret", ISSUER.public)),
        audience=json.dumps(AUDIENCE),
        folder=json.dumps(str(folder / "avatars")),
    )

    async def offer() -> str:
        pc = RTCPeerConnection()
        pc.addTransceiver("video", direction="recvonly")
        pc.addTransceiver("audio", direction="recvonly")
        await pc.setLocalDescription(await pc.createOffer())
        sdp = str(pc.localDescription.sdp)
        await pc.close()
        return sdp

    with server(config, environ={"PYTHONPATH": str(folder / "stub")}) as running:
        made = World(running, running.serving(spares=0), asyncio.run(offer()))
        yield made
        made.channel.close()
        assert running.stop() == 0


# ---------------------------------------------------------------- asking
FORM = b'--x\r\nContent-Disposition: form-data; name="sessionid"\r\n\r\nnobody\r\n--x--\r\n'


def ask(world: World, row: Row, shown: str, avatar: str = "") -> tuple[str, Any]:
    """The word for a refusal by one way in, and what else was answered.

    Args:
        avatar: that is asked for, where that can be said.
    """
    if row.section == "Stream ports":
        return world.websocket(f"ws://127.0.0.1:{world.status.ports[0]}/", shown, avatar), None
    if row.way == "WebSocket /ws":
        return world.websocket(f"ws://127.0.0.1:{world.status.http_port}/ws", shown, avatar), None
    if row.section == "gRPC":
        return world.rpc(row.way, shown, avatar or "tiny")
    method, path = row.way.split(" ")
    if row.section == "HTTP port":
        named = avatar or ("tiny" if method == "GET" else "nobody")
        path = path.replace("{name}", named)
        status, code, body = world.http(world.status.http_port, method, path, shown)
        return code, (status, body)
    path = path.replace("{id}", "nobody")
    if row.section == "LiveKit":
        asked = {"livekit_url": "wss://rooms.example", "livekit_token": livekit_token()}
        data = json.dumps(asked | {"avatar": avatar}) if method == "POST" else None
        status, code, body = world.http(world.ports["livekit"], method, path, shown, data)
        return code, (status, body)
    return ask_webrtc(world, method, path, shown, avatar)


def ask_webrtc(
    world: World, method: str, path: str, shown: str, avatar: str
) -> tuple[str, tuple[int, bytes]]:
    data: Any = json.dumps({"sessionid": "nobody", "text": "hello", "type": "echo"})
    kind = "application/json"
    if path == "/whep":
        path, data, kind = f"/whep?avatar={avatar}", world.sdp, "application/sdp"
    elif path == "/offer":
        data = json.dumps({"sdp": world.sdp, "type": "offer", "avatar": avatar})
    elif path == "/humanaudio":
        data, kind = FORM, "multipart/form-data; boundary=x"
    elif path == "/record":
        data = json.dumps({"sessionid": "nobody", "type": "end_record"})
    if method == "GET":
        data = None
    status, code, body = world.http(world.ports["webrtc"], method, path, shown, data, kind)
    if not code and body.startswith(b'{"code":-1'):
        code = json.loads(body).get("reason", "")
    return code, (status, body)


def livekit_token() -> str:
    claims = json.dumps({"exp": time.time() + 600}).encode()
    return f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


PRIVATE = [row for row in rows() if row.asks in ("token", "admin")]
OPEN = [row for row in rows() if row.asks == "nobody"]


def test_each_way_in_of_the_http_port_has_its_row(world: World) -> None:
    nothing: Any = None
    found = {"OPTIONS *"}
    for path in {route.path for route in routes(nothing, nothing, nothing)}:
        named = path.replace("{name}", "main.js" if path.startswith("/assets") else "tiny")
        asked = http.client.HTTPConnection("127.0.0.1", world.status.http_port, 60)
        asked.request("OPTIONS", named)
        allowed = asked.getresponse().headers["Allow"].split(", ")
        asked.close()
        found |= {f"{method} {path}" for method in allowed if method not in ("OPTIONS", "HEAD")}
    assert in_document("HTTP port") == found | {"WebSocket /ws"}
    assert in_document("Stream ports") == {"WebSocket", "WebSocket, inner", "TLS"}


@pytest.mark.parametrize("row", PRIVATE, ids=str)
def test_who_may_not_is_refused(row: Row, world: World) -> None:
    more: dict[str, Any] = {"admin": True} if row.asks == "admin" else {}
    right = token(**more)
    wrong = STRANGER.token(aud=AUDIENCE, lipsync=more)
    shown = ["", wrong, right[:-3], token(-60, **more), token(aud="voices", **more), right]
    if row.asks == "admin":
        shown.append(token())
    assert [ask(world, row, each)[0] for each in shown] == [
        "unauthorized",
        "wrong_token",
        "wrong_token",
        "expired",
        "wrong_audience",
        ask(world, row, right)[0],
        *(["admin"] if row.asks == "admin" else []),
    ]
    assert ask(world, row, right)[0] in ("", "unknown_avatar"), "who may is let in"


@pytest.mark.parametrize("row", PRIVATE, ids=str)
def test_who_has_used_up_what_he_may_is_refused(row: Row, world: World) -> None:
    often = token(sub=f"often, {row}", connects_per_minute=1, admin=row.asks == "admin")
    world.http(world.status.http_port, "GET", "/v1/sample.wav", often)
    # Once more where the gateway counts by itself, and where a minute begins meanwhile.
    assert "over_quota" in [ask(world, row, often)[0] for _ in range(3)]


@pytest.mark.parametrize("row", [row for row in PRIVATE if row.avatars != "—"], ids=str)
def test_anothers_avatar_is_told_like_one_that_is_not_there(row: Row, world: World) -> None:
    some = token(avatars=["tiny"], admin=row.asks == "admin")
    code, answer = ask(world, row, some, "other")
    everything = token(admin=row.asks == "admin")
    if row.avatars == "404":
        assert answer[0] == 404
        if row.asks == "token" and row.section == "HTTP port":
            assert ask(world, row, everything, "other")[1][0] == 200
    elif row.avatars == "all":
        assert code == "forbidden"
        assert ask(world, row, everything)[0] == ""
    elif row.avatars == "filtered":
        assert seen(answer) == 1
        assert seen(ask(world, row, everything)[1]) == 2
    elif row.avatars == "refused":
        assert_refused(answer)
    else:
        assert code == row.avatars
        assert ask(world, row, everything, "other")[0] == ""


def seen(answer: Any) -> int:
    """How many avatars an answer knows of."""
    if isinstance(answer, tuple):
        return len(json.loads(answer[1])["avatars"])
    return int(getattr(answer, "count", 0) or answer.loaded_models)


def assert_refused(answer: Any) -> None:
    """It says that there is no such avatar, in its own words."""
    if isinstance(answer, tuple):
        told = json.loads(answer[1])
        assert told["code"] == -1
        assert "'other'" in told["msg"]
        return
    for response in getattr(answer, "responses", [answer]):
        assert not response.success
        assert "'other'" in response.error


@pytest.mark.parametrize("row", OPEN, ids=str)
def test_what_is_open_needs_no_token(row: Row, world: World) -> None:
    port = world.ports["webrtc"] if row.section == "WebRTC" else world.status.http_port
    if row.section == "gRPC":
        if row.way == health.SERVICE_NAME:
            stub = world.channel.unary_unary(
                f"/{health.SERVICE_NAME}/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            assert stub(health_pb2.HealthCheckRequest(), timeout=60).status == 1
        return
    method, path = row.way.replace("*", "/offer" if row.section == "WebRTC" else "/stats").split()
    status, code, _ = world.http(port, method, path.replace("{name}", "main.js"), "")
    assert (status, code) == (204 if method == "OPTIONS" else 200, "")


def test_what_somebody_has_begun_is_that_ones(world: World) -> None:
    port, ann, bob = (
        world.ports["livekit"],
        token(sub="ann", admin=True),
        token(sub="bob", admin=True),
    )
    asked = json.dumps({"livekit_url": "wss://rooms.example", "livekit_token": livekit_token()})
    status, _, body = world.http(port, "POST", ROUTE, ann, asked)
    assert status == 201
    room = json.loads(body)["session"]

    def rooms(shown: str) -> list[str]:
        listed = json.loads(world.http(port, "GET", ROUTE, shown)[2])
        return [each["session"] for each in listed["sessions"]]

    assert room in rooms(ann)
    assert room not in rooms(bob)
    assert world.http(port, "DELETE", f"{ROUTE}/{room}", bob)[0] == 404
    assert world.http(port, "DELETE", f"{ROUTE}/{room}", ann)[0] == 204
    signalling = world.ports["webrtc"]
    status, _, body = world.http(
        signalling, "POST", "/offer", ann, json.dumps({"sdp": world.sdp, "type": "offer"})
    )
    peer = json.loads(body)["sessionid"]
    for shown, expected in ((bob, 403), (ann, 204)):
        got = world.http(signalling, "DELETE", f"/whep/{peer}/audio", shown)
        assert got[0] == expected
    assert world.http(signalling, "DELETE", f"/whep/{peer}", ann)[0] == 200
