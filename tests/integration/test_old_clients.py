# SPDX-License-Identifier: Apache-2.0
"""Clients of the old protocols, byte by byte over raw sockets, against a real server.

Nothing of this package's protocol code is used on the client's side.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import random
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from raw_websocket import BINARY, CONTINUATION, ClosedError, RawWebSocket
from talking import BUSY_MACHINE

from lipsync_fast.audio.pcm import Resampler
from lipsync_fast.audio.windows import BlockStream
from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.client.local import LocalServer
from lipsync_fast.engine.backends import create_backend
from lipsync_fast.engine.backends.base import SQUARE, RegionJob

CHUNK = 1_920
DEMO = shipped_folder() / "demo.lsa"
Rendered = dict[tuple[int, int], NDArray[np.uint8]]
COUNT = 40
"""Windows of the sound that the tests speak."""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """One of its own: an engine of it dies."""
    with LocalServer({"live": {"speakers": 4}, "engines": BUSY_MACHINE}) as server:
        yield server


# ---------------------------------------------------------------- what clients send and read
@cache
def sound() -> bytes:
    """Speech-like noise, int16 at 24 kHz: long enough for COUNT windows."""
    rng = np.random.default_rng(5)
    chunks = COUNT + 16
    loud = np.repeat(rng.uniform(200, 9000, chunks), CHUNK // 2)
    return (rng.standard_normal(len(loud)) * loud).clip(-32768, 32767).astype("<i2").tobytes()


def window(at: int) -> bytes:
    return sound()[at * CHUNK : (at + 16) * CHUNK]


def request(frame_id: int, audio: bytes = b"", name: bytes = b"demo") -> bytes:
    head = struct.pack("<I", len(name)) + name
    return head + struct.pack("<II", frame_id, len(audio)) + audio


@dataclass(frozen=True)
class Reply:
    """A binary reply, taken apart."""

    frame_id: int
    jpeg: bytes
    bounds: tuple[float, ...]
    error: str | None = None

    @property
    def image(self) -> NDArray[np.uint8]:
        return decoded(self.jpeg)


def decoded(jpeg: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def take_apart(data: str | bytes) -> Reply:
    assert isinstance(data, bytes), data
    kind, frame_id, _, size = struct.unpack_from("<BIII", data)
    body, rest = data[13 : 13 + size], data[13 + size :]
    if kind == 0:
        assert rest == b""
        assert body
        return Reply(frame_id, b"", (), body.decode())
    assert kind == 1
    assert (13 + size + 4) % 4 == 0, "a Float32Array must be able to begin there"
    end = body.rindex(b"\xff\xd9") + 2
    assert body[end:] == bytes(size - end)
    assert size - end <= 3
    bytes_of_bounds, *bounds = struct.unpack("<I4f", rest)
    assert bytes_of_bounds == 16
    return Reply(frame_id, body[:end], tuple(bounds))


class OldClient(RawWebSocket):
    """Statistics that come unasked are set aside."""

    def reply(self) -> str | bytes:
        while True:
            message = self.receive()
            if isinstance(message, str) and json.loads(message).get("type") == "stats":
                continue
            return message

    def picture(self) -> Reply:
        reply = take_apart(self.reply())
        assert reply.error is None, reply.error
        return reply

    def words(self) -> Any:
        return json.loads(self.reply())


@pytest.fixture(params=["stream", "ws"])
def client(request: pytest.FixtureRequest, server: LocalServer) -> Iterator[OldClient]:
    """A client at each door: a stream port at any path, and /ws of the HTTP port."""
    url = f"{server.url}/any/path" if request.param == "stream" else f"{server.http_url}/ws"
    with OldClient(url) as client:
        yield client


@pytest.fixture
def stream_client(server: LocalServer) -> Iterator[OldClient]:
    with OldClient(server.url) as client:
        yield client


# ---------------------------------------------------------------- what a render makes
@pytest.fixture(scope="module")
def rendered() -> Rendered:
    """Regions of the whole sound as the offline pipeline makes them, by chunk and picture.

    Windows begin with chunk 0, so the sound's frame k is a window's current chunk for window k - 8.
    """
    pcm = np.frombuffer(sound(), "<i2").astype(np.float32) / 32768
    resampler = Resampler(24_000)
    out: Rendered = {}
    backend = create_backend("cpu")
    with AvatarPackage.open(DEMO) as package:
        avatar, manifest = backend.load(package), package.manifest
        blocks = BlockStream(manifest.audio, lambda windows: backend.features(avatar, windows))
        stream = [*blocks.push(np.concatenate([resampler.push(pcm), resampler.finish()]))]

        def shown(place: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
            """What a client sees of it: JPEG of the avatar's quality."""
            out = io.BytesIO()
            Image.fromarray(image).save(out, "JPEG", quality=manifest.jpeg.quality, subsampling=2)
            return np.asarray(Image.open(out))

        for at in range(COUNT):
            for picture in {manifest.avatar_frame(at), 7}:
                job = RegionJob(avatar, picture, stream[at + 8], part=SQUARE)
                out[at, picture] = backend.submit([job], shown)[0].result()
        backend.close()
    return out


# ---------------------------------------------------------------- habits
def test_ids_and_sound_go_on_together(client: OldClient, rendered: Rendered) -> None:
    """The picture is that of a render of the whole sound, pixel for pixel."""
    for k in range(COUNT):
        client.send(request(k, window(k)))
        reply = client.picture()
        assert reply.frame_id == k
        assert np.array_equal(reply.image, rendered[k, k])


def test_nine_requests_in_flight(client: OldClient, rendered: Rendered) -> None:
    """As many as one client keeps in its table; the next goes out when a reply has come."""
    for k in range(9):
        client.send(request(k, window(k)))
    for k in range(COUNT):
        reply = client.picture()
        assert reply.frame_id == k
        assert np.array_equal(reply.image, rendered[k, k])
        if k + 9 < COUNT:
            client.send(request(k + 9, window(k + 9)))


def test_all_at_once(client: OldClient) -> None:
    """More than the server works on at a time: it reads no more until it has answered."""
    for k in range(120):
        client.send(request(k))
    assert [client.picture().frame_id for _ in range(120)] == list(range(120))


def test_one_id_for_all(client: OldClient, rendered: Rendered) -> None:
    for k in range(COUNT):
        client.send(request(7, window(k)))
    for k in range(COUNT):
        reply = client.picture()
        assert reply.frame_id == 7
        assert np.array_equal(reply.image, rendered[k, 7])


def test_skipped_ids_and_chunks(client: OldClient, rendered: Rendered) -> None:
    steps = random.Random(2)
    places = [0]
    while places[-1] < COUNT - 10:
        places.append(places[-1] + steps.choice([1, 1, 2, 3, 5, 9]))
    for k in places:
        client.send(request(k, window(k)))
    for k in places:
        reply = client.picture()
        assert reply.frame_id == k
        assert np.array_equal(reply.image, rendered[k, k])


def test_one_chunk_sixteen_times(client: OldClient) -> None:
    for k in range(30):
        client.send(request(k, sound()[k * CHUNK :][:CHUNK] * 16))
    replies = [client.picture() for _ in range(30)]
    assert [r.frame_id for r in replies] == list(range(30))
    assert len({r.jpeg for r in replies}) > 20, "the mouth moves"


def test_ids_without_bound(client: OldClient) -> None:
    with AvatarPackage.open(DEMO) as package:
        count = package.manifest.frame_count
        inner = {}
        for index in range(count):
            x1, y1, x2, y2 = package.rect(index).corners
            across = (x2 - x1) * 4 / package.manifest.crop
            down = (y2 - y1) * 4 / package.manifest.crop
            inner[index] = (x1 + across, y1 + down, x2 - across, y2 - down)
    ids = [count - 1, count, 2 * count - 2, 100_000, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    for frame_id in ids:
        client.send(request(frame_id, window(3)))
    for frame_id in ids:
        reply = client.picture()
        assert reply.frame_id == frame_id
        there_and_back = [*range(count), *range(count - 2, 0, -1)]
        index = there_and_back[frame_id % len(there_and_back)]
        assert np.allclose(reply.bounds, inner[index], atol=1e-3)


def test_pauses(stream_client: OldClient, rendered: Rendered) -> None:
    """A client that rests until the server speaks by itself, and goes on where it was."""
    client = stream_client
    for k in range(4):
        client.send(request(k, window(k)))
        assert np.array_equal(client.picture().image, rendered[k, k])
    stats = json.loads(client.receive())
    assert stats["type"] == "stats"
    assert stats["binary_requests"] >= 4
    for k in range(4, 8):
        client.send(request(k, window(k)))
        assert np.array_equal(client.picture().image, rendered[k, k])


def test_no_sound(client: OldClient) -> None:
    """The avatar's own mouth."""
    client.send(request(5))
    reply = client.picture()
    with AvatarPackage.open(DEMO) as package:
        want = package.crop(5)[4:-4, 4:-4].astype(int)
    assert reply.image.shape == want.shape
    assert np.abs(reply.image - want).mean() < 4


def test_odd_windows(client: OldClient) -> None:
    sizes = [1, 2, 3, 1919, 1921, 5 * CHUNK + 1, 15 * CHUNK, 16 * CHUNK + 1, 17 * CHUNK, 300_000]
    for k, size in enumerate(sizes):
        client.send(request(k, (sound() * 2)[:size]))
    assert [client.picture().frame_id for _ in sizes] == list(range(len(sizes)))


def test_messages_in_pieces(client: OldClient) -> None:
    data = request(3, window(0))
    client.send_frame(BINARY, data[:5], last=False)
    for at in range(5, len(data), 9_000):
        client.send_frame(CONTINUATION, data[at : at + 9_000], last=False)
    client.send_frame(CONTINUATION, b"", last=True)
    assert client.picture().frame_id == 3


def test_the_one_byte_form(client: OldClient) -> None:
    for frame_id in (0, 3, -1):
        client.send(b"\4demo" + struct.pack("<i", frame_id))
        jpeg = client.reply()
        assert isinstance(jpeg, bytes)
        with AvatarPackage.open(DEMO) as package:
            index = package.manifest.avatar_frame(frame_id)
            want = np.asarray(Image.open(io.BytesIO(package.frame_jpeg(index))))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(jpeg))), want)


# ---------------------------------------------------------------- what is wrong
def closing_code(client: OldClient, message: bytes) -> int | None:
    """With what a message makes the server close; None where the end came before the code."""
    try:
        client.send(message)
        reply = client.reply()
    except ClosedError as closed:
        return closed.code
    except ConnectionError:  # it closes while the message still comes
        return None
    raise AssertionError(f"answered {reply[:40]!r}")


def test_errors_have_the_real_id_and_keep_their_place(client: OldClient) -> None:
    wrong = {
        b"": (0, "Binary message too short"),
        b"\4\0": (0, "Binary message too short"),
        b"\xff\xff\xff\x7fdemo": (0, "Invalid model name length"),
        b"\4\0\0\0demo\1\0": (0, "Missing frame ID"),
        b"\4\0\0\0demo\x29\0\0\0": (41, "Missing audio length"),
        b"\4\0\0\0demo\x2a\0\0\0\xff\xff\xff\xffmore": (42, "Invalid audio data length"),
        request(43, name=b"nobody"): (43, None),
        request(44, name=b"../demo.lsa"): (44, None),
        request(45, name=b"\xff\xfe\0"): (45, None),
        request(46, name=b"n" * 5_000): (46, None),
    }
    for k, data in enumerate(wrong):
        client.send(data)
        client.send(request(100 + k))
    for k, (frame_id, text) in enumerate(wrong.values()):
        reply = take_apart(client.reply())
        assert reply.frame_id == frame_id
        assert reply.error is not None
        assert reply.error == text or (text is None and "demo" in reply.error)
        assert client.picture().frame_id == 100 + k


def test_other_names_of_the_default_avatar(client: OldClient) -> None:
    for name in (b"", b"default_model", b"demo"):
        client.send(request(9, name=name))
    assert len({client.picture().jpeg for _ in range(3)}) == 1


def test_garbage(client: OldClient) -> None:
    """Each gets a reply, and the connection lives."""
    noise = random.Random(7)
    for k in range(200):
        size = noise.choice([0, 1, 3, 4, 5, 9, 12, 60, 400])
        data = noise.randbytes(size)
        client.send(data if k % 2 else data.decode("latin-1"))
        assert client.reply()
    client.send(request(1))
    assert client.picture().frame_id == 1


def test_deep_and_long_text(client: OldClient) -> None:
    for text in ('{"x":' * 1_000, "[" * 1_000 + "]" * 1_000, "[" * 1_000_000, "\0", '"' * 9):
        client.send(text)
        assert client.words()["type"] == "error"
    deep = "[" * 900 + "]" * 900
    client.send('{"type":"get_models","deep":' + deep + "}")
    assert client.words()["type"] in ("models", "error")


def test_the_largest_message_and_one_byte_more(client: OldClient, server: LocalServer) -> None:
    limit = 10_000_000
    fits = request(6, bytes(limit - 16))
    assert len(fits) == limit
    client.send(fits)
    assert client.picture().frame_id == 6
    with OldClient(server.url) as other:
        assert closing_code(other, fits + b"\0") in (1009, None)
    client.send(request(7))
    assert client.picture().frame_id == 7


def test_who_vanishes_hurts_nobody(client: OldClient, server: LocalServer) -> None:
    others = [OldClient(server.url) for _ in range(8)]
    for k, other in enumerate(others):
        for n in range(9):
            other.send(request(n, window(n)))
        half = RawWebSocket.frame(BINARY, request(9, window(9)))
        other.socket.sendall(half[: len(half) // 2])
        if k % 2:
            other.reset()
    for k in range(30):
        client.send(request(k, window(k)))
        assert client.picture().frame_id == k
    for other in others[::2]:  # half a message, and silence: what was asked before is answered
        assert [other.picture().frame_id for _ in range(9)] == list(range(9))
        other.socket.close()


def test_an_engine_dies(server: LocalServer, client: OldClient, rendered: Rendered) -> None:
    """No reply is lost, none comes twice, and the pictures are the same."""
    killed = next(e for e in server.status().engines if e.state == "ready")
    for k in range(9):
        client.send(request(k, window(k)))
    for k in range(COUNT):
        if k == 3:
            os.kill(killed.pid, signal.SIGKILL)
        reply = client.picture()
        assert reply.frame_id == k
        assert np.array_equal(reply.image, rendered[k, k])
        if k + 9 < COUNT:
            client.send(request(k + 9, window(k + 9)))
    assert killed.pid not in [e.pid for e in server.status().engines]


# ---------------------------------------------------------------- text
def test_what_is_told_in_text(client: OldClient) -> None:
    def said(**fields: object) -> Any:
        client.send(json.dumps(fields))
        return client.words()

    models = said(type="get_models")["models"]
    assert "demo" in models["loaded_models"]
    assert models["count"] == len(models["loaded_models"])
    assert said(type="list_models") == {
        "type": "model_list",
        "models": models["loaded_models"],
        "count": models["count"],
    }
    assert said(type="dance") == {"type": "error", "error": "Unknown message type: dance"}
    assert said(type="test_binary")["message"] == "Binary protocol supported"
    stats = said(type="get_model_stats", model_name="demo")["stats"]
    assert stats["frame_count"] == 100
    assert stats["device"]
    metadata = said(type="get_metadata", model_name="demo")
    assert (metadata["success"], metadata["frame_count"]) == (True, 100)
    assert said(type="get_metadata", model_name="x")["success"] is False
    client.send('{"type":"get_stats"}')
    stats = json.loads(client.receive())
    assert stats["connected_clients"] >= 1


def test_switch_to_binary_is_answered_by_the_door(server: LocalServer) -> None:
    for url, kind in ((server.url, "protocol_info"), (f"{server.http_url}/ws", "protocol_ack")):
        with OldClient(url) as client:
            client.send('{"type":"switch_to_binary"}')
            assert client.words()["type"] == kind


@pytest.mark.parametrize("kind", ["full_body", "face_regions", "masked_regions"])
def test_frames_of_the_avatar(client: OldClient, kind: str) -> None:
    asked = {"type": "get_video_frame", "model_name": "demo", "frame_id": 3, "video_type": kind}
    client.send(json.dumps(asked))
    data = client.reply()
    assert isinstance(data, bytes)
    head = b"\2" + struct.pack("<i", 3) + bytes([len(kind)]) + kind.encode()
    assert data.startswith(head)
    jpeg = data[len(head) + 4 :]
    assert struct.unpack_from("<I", data, len(head)) == (len(jpeg),)
    size = Image.open(io.BytesIO(jpeg)).size
    with AvatarPackage.open(DEMO) as package:
        side = package.manifest.region
        assert size == (package.frame_size if kind == "full_body" else (side, side))


def test_pictures_in_text(client: OldClient, rendered: Rendered) -> None:
    for k in range(4):
        asked = {
            "model_name": "demo",
            "frame_id": k,
            "audio_override": base64.b64encode(window(k)).decode(),
            "request_id": f"mine-{k}",
        }
        client.send(json.dumps(asked))
        reply = client.words()
        assert (reply["success"], reply["frame_id"], reply["request_id"]) == (True, k, f"mine-{k}")
        assert np.array_equal(decoded(base64.b64decode(reply["prediction_data"])), rendered[k, k])
        assert len(reply["bounds"]) == 4


def test_a_batch_of_pictures(client: OldClient, rendered: Rendered) -> None:
    """Windows of successive chunks: 8 before, one each, 7 behind."""
    asked = {
        "model_name": "demo",
        "batch_frames": [{"frame_id": k} for k in range(20)],
        "audio_override": base64.b64encode(sound()[: 35 * CHUNK]).decode(),
        "request_id": 4,
    }
    client.send(json.dumps(asked))
    reply = client.words()
    assert (reply["success"], reply["batch_size"], reply["request_id"]) == (True, 20, 4)
    for k, frame in enumerate(reply["frames"]):
        assert frame["frame_id"] == k
        assert np.array_equal(decoded(base64.b64decode(frame["prediction_data"])), rendered[k, k])


def test_text_and_binary_in_one_order(client: OldClient) -> None:
    words = itertools.cycle(['{"type":"list_models"}', '{"frame_id":5}', '{"type":"dance"}', "?"])
    for k in range(40):
        client.send(request(k, window(k)) if k % 2 else next(words))
    for k in range(40):
        reply = client.reply()
        assert isinstance(reply, bytes) == bool(k % 2)
        if k % 2:
            assert take_apart(reply).frame_id == k


# ---------------------------------------------------------------- beside it
def test_the_avatars_video(server: LocalServer) -> None:
    """All frames once, for clients that play them there and back; whole or in ranges."""

    def get(name: str, **headers: str) -> tuple[int, bytes]:
        host = urlsplit(server.http_url).netloc
        with contextlib.closing(http.client.HTTPConnection(host, timeout=120)) as connection:
            connection.request("GET", f"/models/{name}/video.mp4", headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    status, whole = get("demo")
    assert status == 200
    assert get("demo", Range="bytes=1000-1999") == (206, whole[1000:2000])
    assert get("nobody")[0] == 404
    with av.open(io.BytesIO(whole)) as container, AvatarPackage.open(DEMO) as package:
        frames = list(container.decode(video=0))
        assert len(frames) == package.manifest.frame_count
        for index in (0, 50, 99):
            image = frames[index].to_ndarray(format="rgb24").astype(int)
            assert np.abs(image - package.picture(index)).mean() < 6
