# SPDX-License-Identifier: Apache-2.0
"""Connections of old clients: every reply, in order, once; what each message is answered."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from legacy_world import World, description, got, request, world
from PIL import Image

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.frontend.avatars.directory import AvatarDirectory
from lipsync_fast.frontend.engines import single_requests
from lipsync_fast.ipc.messages import Content, Status
from lipsync_fast.tokens.subject import ANYONE

CHUNK = 1_920
Body = Callable[[World], Awaitable[None]]


@pytest.fixture
def run(tiny_avatar: Path) -> Callable[..., None]:
    """Run the body of a test in a front that serves the tiny avatar."""

    def run(body: Body, clock: trio.abc.Clock | None = None, **limits: float) -> None:
        async def main() -> None:
            async with world(tiny_avatar.parent, **limits) as w:
                with trio.fail_after(60):
                    await body(w)

        trio.run(main, clock=clock)

    return run


def windows(count: int, seed: int = 1) -> list[bytes]:
    """Windows of one sound, a chunk further each."""
    noise = np.random.default_rng(seed).integers(-9000, 9000, (count + 16) * 960)
    data = noise.astype("<i2").tobytes()
    return [data[k * CHUNK : (k + 16) * CHUNK] for k in range(count)]


async def ask(w: World, message: str | bytes, **where: Any) -> Any:
    """The one reply to a first message, text as what it says."""
    socket = w.connect(message, **where)
    reply = await socket.hear()
    socket.vanish()
    return json.loads(reply) if isinstance(reply, str) else reply


# ---------------------------------------------------------------- order and number
def test_replies_come_in_the_order_of_the_requests(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        w.engine.at_once = False
        audio = windows(9)
        socket = w.connect(*(request(100 + k, audio[k]) for k in range(9)))
        await w.engine.asked(9)
        while w.engine.waiting:
            w.engine.answer(-1)
        replies = [got(await socket.hear()) for _ in range(9)]
        assert [r.frame_id for r in replies] == list(range(100, 109))
        speech = [r.job.speech for r in replies]
        assert [s.frame for s in speech if s] == list(range(8, 17))
        assert len({s.stream for s in speech if s}) == 1
        assert {r.job.look.content for r in replies} == {Content.REGION}

    run(body)


def test_no_more_is_read_than_may_be_in_flight(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        w.engine.at_once = False
        socket = w.connect(*(request(k) for k in range(40)))
        await w.engine.asked(16)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(w.engine.seen) == socket.read_by_server == 16
        for n in range(40):
            await w.engine.asked(1)
            w.engine.answer(0)
            assert got(await socket.hear()).frame_id == n
        assert len(w.engine.seen) == 40

    run(body)


def test_a_client_that_does_not_read_costs_what_may_be_in_flight(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        slow = w.connect(*(request(k) for k in range(100)))
        slow.readable = trio.Event()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(w.engine.seen) == 16
        other = w.connect(*(request(k) for k in range(50)))
        assert [got(await other.hear()).frame_id for _ in range(50)] == list(range(50))
        slow.readable.set()
        slow.vanish()

    run(body)


def test_errors_keep_their_place(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        w.engine.at_once = False
        socket = w.connect(
            request(1),
            b"\4\0\0\0tiny\2\0\0\0\xff\0\0\0",
            '{"type":"get_models"}',
            b"",
            request(5, name=b"nobody"),
            request(6),
        )
        await w.engine.asked(2)
        w.engine.answer(1)
        w.engine.answer(0)
        assert got(await socket.hear()).frame_id == 1
        bad = got(await socket.hear())
        assert (bad.kind, bad.frame_id, bad.body) == (0, 2, b"Invalid audio data length")
        assert json.loads(await socket.hear())["type"] == "models"
        assert got(await socket.hear()).body == b"Binary message too short"
        unknown = got(await socket.hear())
        assert (unknown.kind, unknown.frame_id) == (0, 5)
        assert unknown.body.startswith(b"Unknown model 'nobody'; loaded: tiny")
        assert got(await socket.hear()).frame_id == 6

    run(body)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.text(max_size=60),
            st.builds(request, st.integers(0, 2**32 - 1), st.binary(max_size=40)),
            st.dictionaries(
                st.sampled_from(["type", "frame_id", "audio_override", "batch_frames"]),
                st.sampled_from(
                    ["", "inference", "get_video_frame", 7, None, [], [{"frame_id": 1}], "AAAA"]
                ),
            ).map(json.dumps),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_anything_gets_one_reply(tiny_avatar: Path, messages: list[str | bytes]) -> None:
    async def main() -> None:
        async with world(tiny_avatar.parent) as w:
            with trio.fail_after(60):
                socket = w.connect(*messages)
                last = "this one is the last"
                socket.say(json.dumps({"request_id": last}))
                replies = [await socket.hear() for _ in range(len(messages) + 1)]
                assert all(replies)
                assert json.loads(replies[-1])["request_id"] == last

    trio.run(main)


# ---------------------------------------------------------------- binary
@pytest.mark.parametrize(("frame_id", "picture"), [(0, 0), (6, 2), (8, 0), (2**32 - 1, 1)])
def test_the_picture_and_its_place(run: Callable[..., None], frame_id: int, picture: int) -> None:
    async def body(w: World) -> None:
        reply = got(await ask(w, request(frame_id, windows(1)[0])))
        job, pcm = w.engine.seen[0]
        assert reply.frame_id == frame_id
        assert reply.job == job
        assert job.avatar_frame == picture
        assert job.speech is not None
        assert len(pcm) > 9_000
        # The face rectangle 32, 40, 128, 136 is a crop of 232 pixels with a border of 4.
        inner = np.float32([32 + 96 * 4 / 232, 40 + 96 * 4 / 232, 128 - 96 * 4 / 232])
        assert np.allclose(reply.bounds, [*inner, 136 - 96 * 4 / 232])

    run(body)


@pytest.mark.parametrize("name", [b"", b"default_model", b"tiny"])
def test_names_of_the_default_avatar(run: Callable[..., None], name: bytes) -> None:
    async def body(w: World) -> None:
        assert got(await ask(w, request(3, name=name))).job.avatar == "tiny"

    run(body)


def test_no_sound_shows_the_avatars_own_mouth(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        job = got(await ask(w, request(3))).job
        assert (job.speech, job.look.content) == (None, Content.REGION)

    run(body)


def test_without_any_avatar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AvatarDirectory, "names", lambda self, subject: [])

    async def main() -> None:
        async with world(tmp_path) as w:
            reply = got(await ask(w, request(77)))
            assert (reply.frame_id, reply.body) == (77, b"No models loaded in engine")

    trio.run(main)


def test_the_one_byte_form_gets_the_whole_frame(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        reply = await ask(w, b"\4tiny" + (-1).to_bytes(4, "little", signed=True))
        job, _ = w.engine.seen[0]
        assert reply == description(job)
        assert (job.look.content, job.speech, job.avatar_frame) == (Content.FRAME, None, 1)
        unknown = got(await ask(w, b"\4none" + b"\7\0\0\0"))
        assert (unknown.kind, unknown.frame_id) == (0, 7)

    run(body)


@pytest.mark.parametrize("status", [Status.FAILED, Status.SKIPPED])
def test_where_no_engine_can_the_avatars_own_picture_comes(
    run: Callable[..., None], tiny_avatar: Path, status: Status
) -> None:
    async def body(w: World) -> None:
        w.engine.status = status
        reply = got(await ask(w, request(4, windows(1)[0])))
        assert (reply.kind, reply.frame_id) == (1, 4)
        own = np.asarray(Image.open(io.BytesIO(reply.body))).astype(int)
        with AvatarPackage.open(tiny_avatar) as package:
            want = package.crop(4)[4:-4, 4:-4]
        assert own.shape == want.shape == (224, 224, 3)
        assert np.abs(own - want).mean() < 12
        assert w.services.statistics.load.errors == {"engine_lost": 1}
        whole = await ask(w, b"\4tiny\3\0\0\0")
        assert Image.open(io.BytesIO(whole)).size == (160, 192)

    run(body)


def test_too_much_to_do_is_an_error(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_requests, "MOST_REQUESTS", 0)

    async def body(w: World) -> None:
        reply = got(await ask(w, request(4)))
        assert (reply.kind, reply.frame_id) == (0, 4)
        assert w.services.statistics.load.request_errors == 1

    run(body)


# ---------------------------------------------------------------- text
@pytest.mark.parametrize(
    ("kind", "port", "type"),
    [
        ("stream", 8084, "protocol_info"),
        ("stream", 8085, "protocol_info"),
        ("stream", 8086, "protocol_ack"),
        ("stream", 40_000, "protocol_info"),
        ("http", 40_000, "protocol_ack"),
        ("http", 8084, "protocol_info"),
    ],
)
def test_switch_to_binary(run: Callable[..., None], kind: Any, port: int, type: str) -> None:
    async def body(w: World) -> None:
        reply = await ask(w, '{"type":"switch_to_binary"}', kind=kind, port=port)
        assert reply["type"] == type
        if type == "protocol_info":
            assert reply["binary_supported"] is True
            assert reply["binary_protocol_version"] == "1.0"
        else:
            assert reply["message"] == "Binary protocol supported"

    run(body)


def test_what_is_answered_without_an_engine(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        names = w.services.avatars.names(ANYONE)
        assert "tiny" in names
        assert await ask(w, '{"type":"get_models"}') == {
            "type": "models",
            "models": {"loaded_models": names, "count": len(names)},
        }
        assert await ask(w, '{"type":"list_models"}') == {
            "type": "model_list",
            "models": names,
            "count": len(names),
        }
        assert (await ask(w, '{"type":"test_binary"}'))["type"] == "protocol_ack"
        assert await ask(w, '{"type":"dance"}') == {
            "type": "error",
            "error": "Unknown message type: dance",
        }
        assert (await ask(w, "GET / HTTP/1.1"))["error"].startswith("Invalid JSON: ")
        assert (await ask(w, '{"x":' * 100_000))["type"] == "error"
        assert not w.engine.seen

    run(body)


def test_statistics(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        await ask(w, request(1))
        await ask(w, request(2, name=b"default_model"))
        await ask(w, b"\0")
        stats = await ask(w, '{"type":"get_stats"}')
        assert list(stats) == [
            "type", "total_requests", "binary_requests", "json_requests", "binary_percentage",
            "average_time_ms", "connected_clients",
        ]  # fmt: skip
        assert (stats["total_requests"], stats["binary_requests"], stats["json_requests"]) == (
            4, 3, 1,
        )  # fmt: skip
        assert stats["binary_percentage"] == 75.0
        reply = await ask(w, '{"type":"get_model_stats","model_name":"tiny"}')
        assert reply["type"] == "model_stats"
        assert list(reply["stats"]) == [
            "model_name", "total_requests", "avg_inference_time_ms", "min_inference_time_ms",
            "max_inference_time_ms", "frame_count", "device", "optimizations_active",
        ]  # fmt: skip
        assert (reply["stats"]["total_requests"], reply["stats"]["frame_count"]) == (2, 5)
        assert (
            "Unknown model"
            in (await ask(w, '{"type":"get_model_stats","model_name":"x"}'))["error"]
        )

    run(body)


@pytest.mark.parametrize(
    ("kind", "port", "told"),
    [("stream", 8084, 1), ("stream", 40_000, 1), ("stream", 8085, 0), ("http", 40_000, 0)],
)
def test_statistics_unasked(run: Callable[..., None], kind: Any, port: int, told: int) -> None:
    async def body(w: World) -> None:
        socket = w.connect('{"type":"get_stats"}', kind=kind, port=port)
        await socket.hear()
        await trio.sleep(5.5)
        socket.say('{"type":"dance"}')
        for _ in range(told):
            assert json.loads(await socket.hear())["type"] == "stats"
        assert json.loads(await socket.hear())["type"] == "error"

    run(body, trio.testing.MockClock(autojump_threshold=0.01))


def test_metadata(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        reply = await ask(w, '{"type":"get_metadata","model_name":"tiny"}')
        bounds = reply.pop("bounds")
        assert reply == {
            "type": "metadata",
            "success": True,
            "model_name": "tiny",
            "frame_count": 5,
            "available_videos": ["full_body", "face_regions", "masked_regions"],
            "audio_path": "",
        }
        assert np.allclose(bounds, got(await ask(w, request(0))).bounds)
        reply = await ask(w, '{"type":"get_metadata","model_name":"x"}')
        assert (reply["success"], reply["frame_count"], reply["bounds"]) == (False, 0, [])
        assert "Unknown model" in reply["error"]
        reply = await ask(w, '{"type":"get_metadata","model_name":7}')
        assert (reply["success"], reply["type"]) == (False, "metadata")

    run(body)


def test_frames_of_the_avatar(run: Callable[..., None], tiny_avatar: Path) -> None:
    async def body(w: World) -> None:
        def said(kind: object, frame_id: int = 3) -> str:
            return json.dumps(
                {
                    "type": "get_video_frame",
                    "model_name": "tiny",
                    "frame_id": frame_id,
                    "video_type": kind,
                }
            )

        for kind in ("face_regions", "masked_regions", "full_body"):
            reply = await ask(w, said(kind, -2))
            head = b"\2" + b"\xfe\xff\xff\xff" + bytes([len(kind)]) + kind.encode()
            assert reply.startswith(head)
            jpeg = reply[len(head) + 4 :]
            assert int.from_bytes(reply[len(head) :][:4], "little") == len(jpeg)
            if kind == "full_body":
                assert jpeg == description(w.engine.seen[0][0])
                continue
            image = np.asarray(Image.open(io.BytesIO(jpeg)))
            assert image.shape == (224, 224, 3)
            black = image[16:208, 16:208].mean() < 3
            assert black == (kind == "masked_regions")
        for wrong in ("upside_down", 5, "x" * 400):
            reply = await ask(w, said(wrong, 9))
            assert (reply["type"], reply["model_name"], reply["frame_id"]) == (
                "video_frame", "tiny", 9,
            )  # fmt: skip
            assert reply["error"]

    run(body)


def test_a_picture_in_text(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        audio = base64.b64encode(windows(1)[0]).decode()
        asked = {"model_name": "default_model", "frame_id": 2**40, "audio_override": audio}
        reply = await ask(w, json.dumps(asked))
        job, _ = w.engine.seen[0]
        assert base64.b64decode(reply.pop("prediction_data")) == description(job)
        assert job.speech is not None
        assert len(reply.pop("bounds")) == 4
        assert reply.pop("processing_time_ms") >= 0
        assert reply == {
            "success": True,
            "model_name": "default_model",
            "frame_id": 2**40,
            "metadata": {"picture_index": 2**40 % 8, "prediction_shape": [224, 224, 3]},
            "request_id": "request-1",
            "protocol": "json_fallback",
        }
        reply = await ask(w, '{"type":"inference","frame_id":7,"request_id":5,"model_name":[]}')
        assert reply.pop("processing_time_ms") >= 0
        assert reply.pop("error").startswith("model_name: ")
        assert reply == {
            "success": False,
            "request_id": 5,
            "protocol": "json_fallback",
            "frame_id": 7,
        }

    run(body)


@pytest.mark.parametrize(("chunks", "frames"), [(8 + 20 + 7, range(8, 28)), (16, [8] * 20)])
def test_a_batch(run: Callable[..., None], chunks: int, frames: Any) -> None:
    async def body(w: World) -> None:
        noise = np.random.default_rng(2).integers(-9000, 9000, chunks * 960)
        asked = {
            "model_name": "tiny",
            "batch_frames": [{"frame_id": 50 + k} for k in range(20)],
            "audio_override": base64.b64encode(noise.astype("<i2").tobytes()).decode(),
            "request_id": "b",
        }
        reply = await ask(w, json.dumps(asked), port=8082)
        assert (reply["success"], reply["batch"], reply["batch_size"]) == (True, True, 20)
        assert (reply["model_name"], reply["request_id"]) == ("tiny", "b")
        assert [f["frame_id"] for f in reply["frames"]] == list(range(50, 70))
        jobs = {base64.b64encode(description(j)).decode(): j for j, _ in w.engine.seen}
        made = [jobs[f["prediction_data"]] for f in reply["frames"]]
        assert [j.speech.frame for j in made if j.speech] == list(frames)
        assert [j.avatar_frame for j in made] == [
            f["metadata"]["picture_index"] for f in reply["frames"]
        ]
        assert reply["batch_fps"] > 0
        assert reply["average_frame_time_ms"] > 0

    run(body)


def test_a_batch_of_nobody(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        reply = await ask(w, '{"model_name":"x","batch_frames":[{"frame_id":1}],"frame_id":4}')
        assert (reply["success"], reply["frame_id"]) == (False, 4)
        reply = await ask(w, '{"batch_frames":[]}')
        assert (reply["success"], reply["batch_size"], reply["frames"]) == (True, 0, [])

    run(body)


# ---------------------------------------------------------------- beginning and end
def test_a_client_that_vanishes_leaves_nothing(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        w.engine.at_once = False
        socket = w.connect(*(request(k) for k in range(9)))
        await w.engine.asked(9)
        assert w.services.pool.backlog == 9
        socket.vanish()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert w.services.pool.backlog == 0
        w.engine.at_once = True
        w.engine.waiting.clear()
        assert got(await ask(w, request(1))).frame_id == 1

    run(body)


def test_a_server_that_goes_away_answers_what_was_asked(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        w.engine.at_once = False
        socket = w.connect(request(1), request(2))
        await w.engine.asked(2)
        w.services.admission.draining.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        socket.say(request(3))
        w.engine.answer(1)
        w.engine.answer(0)
        assert [got(await socket.hear()).frame_id for _ in range(2)] == [1, 2]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert socket.closed_with is not None
        assert socket.closed_with[0] == 1001
        assert len(w.engine.seen) == 2

    run(body)


def test_a_client_that_says_nothing_is_let_go(run: Callable[..., None]) -> None:
    async def body(w: World) -> None:
        socket = w.connect(request(1), port=8085)
        assert got(await socket.hear()).frame_id == 1
        await trio.sleep(9)
        socket.say(request(2))
        assert got(await socket.hear()).frame_id == 2
        assert socket.closed_with is None
        await trio.sleep(11)
        assert socket.closed_with is not None
        assert socket.closed_with[0] == 1008

    run(body, trio.testing.MockClock(autojump_threshold=0.01), idle_s=10.0)
