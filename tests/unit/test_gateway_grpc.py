# SPDX-License-Identifier: Apache-2.0
"""The gateway's gRPC before a front that is played: what it asks, answers and refuses."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")

from grpc_world import SECRET, World, run, until  # noqa: E402

from lipsync_fast.gateway.rpc import messages as m  # noqa: E402
from lipsync_fast.gateway.rpc import service  # noqa: E402
from lipsync_fast.gateway.rpc.calls import Shares, address_of  # noqa: E402

CHUNK = 1_920


def chunk(number: int, size: int = CHUNK) -> bytes:
    return bytes([number % 251]) * size


def chunks(frames: int, size: int = CHUNK) -> list[bytes]:
    return [chunk(number, size) for number in range(8 + frames + 7)]


async def status_of(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def asks(frame_ids: Any, model: str = "demo") -> list[Any]:
    return [m.OptimizedInferenceRequest(model_name=model, frame_id=i) for i in frame_ids]


# ---------------------------------------------------------------- what works
def test_each_rpc_is_answered() -> None:
    async def body(world: World) -> None:
        got = await world.call("GenerateInference", asks([-3])[0])
        assert (got.success, got.frame_id, got.model_name) == (True, -3, "demo")
        assert got.prediction_data == world.front.jpeg
        assert (got.prediction_shape, list(got.bounds)) == ("320x320x3", [1.5, 2, 3, 4])
        assert not got.HasField("error")
        batch = await world.call(
            "GenerateBatchInference", m.BatchInferenceRequest(model_name="demo", frame_ids=[5, -1])
        )
        assert [r.frame_id for r in batch.responses] == [5, -1]
        loaded = await world.call("LoadPackage", m.LoadPackageRequest(package_name="demo"))
        assert (loaded.success, loaded.frame_count, loaded.device) == (True, 7, "cpu")
        stats = await world.call("GetStats", m.StatsRequest(model_name="demo"))
        assert (stats.total_requests, stats.avg_inference_time_ms) == (3, 2.5)
        models = await world.call("ListModels", m.ListModelsRequest())
        assert (list(models.loaded_models), models.count) == (["demo"], 1)
        healthy = await world.call("HealthCheck", m.HealthRequest())
        assert (healthy.healthy, healthy.status, healthy.loaded_models) == (True, "SERVING", 1)
        assert healthy.uptime_seconds >= 100
        frame = await world.call(
            "GetVideoFrame",
            m.GetVideoFrameRequest(model_name="demo", frame_id=2, video_type="full_body"),
        )
        assert (frame.success, frame.frame_data, frame.frame_id) == (True, world.front.jpeg, 2)
        about = await world.call("GetModelMetadata", m.GetModelMetadataRequest(model_name="demo"))
        assert (about.success, about.frame_count, list(about.bounds)) == (True, 7, [1, 2, 3, 4])

    run(body)


def test_a_stream_is_answered_in_order_and_its_sound_is_passed_on() -> None:
    async def body(world: World) -> None:
        requests = asks([0, -1, 2**31 - 1, *range(40)])
        requests[1].audio = b"".join(chunks(1))
        stream = world.stub("StreamInference")(iter(requests))
        got = [(r.success, r.frame_id) async for r in stream]
        assert got == [(True, r.frame_id) for r in requests]
        heard = [a for a in world.front.asked if a.get("audio_override")]
        assert [base64.b64decode(a["audio_override"]) for a in heard] == [requests[1].audio]
        await until(lambda: world.calls == 0)

    run(body)


@pytest.mark.parametrize("frames", [1, 16, 17, 40])
def test_a_batch_with_sound_is_asked_for_in_windows_that_overlap(frames: int) -> None:
    async def body(world: World) -> None:
        request = m.BatchInferenceWithAudioRequest(
            model_name="demo", start_frame_id=-4, frame_count=frames, audio_chunks=chunks(frames)
        )
        batch = await world.call("GenerateBatchWithAudio", request)
        assert [r.frame_id for r in batch.responses] == list(range(-4, frames - 4))
        assert all(r.success for r in batch.responses)
        assert batch.avg_frame_time_ms > 0
        sound, at = b"".join(request.audio_chunks), 0
        for asked in [a for a in world.front.asked if "batch_frames" in a]:
            count = len(asked["batch_frames"])
            heard = base64.b64decode(asked["audio_override"])
            # All that any of its frames can see, and 8 chunks before the first one.
            assert heard == sound[at * CHUNK : (at + 8 + count + 24) * CHUNK]
            assert len(heard) >= (8 + count + 7) * CHUNK
            at += count
        assert at == frames

    run(body)


def test_chunks_of_16_khz_are_resampled() -> None:
    async def body(world: World) -> None:
        request = m.BatchInferenceWithAudioRequest(
            frame_count=2, audio_chunks=[b"\x10\x27" * 640] * 17
        )
        batch = await world.call("GenerateBatchWithAudio", request)
        assert [r.success for r in batch.responses] == [True, True]
        (asked,) = [a for a in world.front.asked if "batch_frames" in a]
        heard = base64.b64decode(asked["audio_override"])
        assert len(heard) == 17 * CHUNK
        middle = memoryview(heard)[8 * CHUNK : 9 * CHUNK].cast("h")
        assert all(abs(value - 10_000) < 20 for value in middle)

    run(body)


# ---------------------------------------------------------------- what is wrong with a request
def test_what_is_wrong_is_said_in_band() -> None:
    async def body(world: World) -> None:
        got = await world.call("GenerateInference", asks([4], "nobody")[0])
        assert (got.success, got.frame_id, got.error) == (
            False, 4, "Unknown model 'nobody'; loaded: demo"
        )  # fmt: skip
        batch = m.BatchInferenceRequest(model_name="nobody", frame_ids=range(20))
        got = await world.call("GenerateBatchInference", batch)
        assert len(got.responses) == 20
        assert all("nobody" in r.error for r in got.responses)
        got = await world.call("LoadPackage", m.LoadPackageRequest(package_name="nobody"))
        assert not got.success
        assert "nobody" in got.error
        assert world.load.refused["grpc"] == 22
        assert world.load.failed["grpc"] == 0

    run(body)


def test_two_rpcs_set_not_found_beside_it() -> None:
    async def body(world: World) -> None:
        for name, request in (
            ("GetVideoFrame", m.GetVideoFrameRequest(model_name="nobody")),
            ("GetModelMetadata", m.GetModelMetadataRequest(model_name="nobody")),
            ("GetStats", m.StatsRequest(model_name="nobody")),  # has no field to say it in
        ):
            error = await status_of(world.call(name, request))
            assert error.code() == grpc.StatusCode.NOT_FOUND
            assert "nobody" in error.details()

    run(body)


BAD_BATCHES = {
    "none": (0, chunks(0), "frame_count: 0"),
    "negative": (-5, chunks(0), "frame_count: -5"),
    "too many": (1001, [], "expected 1 to 1000"),
    "too few chunks": (3, chunks(2), "17 chunks; 3 frames need 18"),
    "no chunks": (1, [], "0 chunks"),
    "empty chunks": (1, [b""] * 16, "a chunk of 0 bytes"),
    "another rate": (1, chunks(1, 3840), "a chunk of 3840 bytes"),
    "uneven": (1, [*chunks(0), chunk(1, 100), chunk(2)], "chunk 15 has 100 bytes"),
}


@pytest.mark.parametrize("what", BAD_BATCHES)
def test_a_batch_that_cannot_be_is_one_error(what: str) -> None:
    count, sound, words = BAD_BATCHES[what]

    async def body(world: World) -> None:
        request = m.BatchInferenceWithAudioRequest(frame_count=count, audio_chunks=sound)
        (got,) = (await world.call("GenerateBatchWithAudio", request)).responses
        assert not got.success
        assert words in got.error
        assert not [a for a in world.front.asked if "batch_frames" in a]

    run(body)


def test_too_many_and_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_RESPONSE", 900)

    async def body(world: World) -> None:
        many = m.BatchInferenceRequest(frame_ids=range(1001))
        (got,) = (await world.call("GenerateBatchInference", many)).responses
        assert "1001 frames; at most 1000" in got.error
        huge = m.OptimizedInferenceRequest(model_name="x" * (60 << 20))
        error = await status_of(world.call("GenerateInference", huge))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        long = await world.call("GenerateInference", asks([1], "x" * (4 << 20))[0])
        assert not long.success
        assert len(world.front.asked[-1]["model_name"]) == 1000
        world.front.jpeg = bytes(50)
        batch = m.BatchInferenceRequest(frame_ids=range(48))
        got = (await world.call("GenerateBatchInference", batch)).responses
        assert [r.success for r in got] == [True] * 16 + [False] * 32
        assert "ask for fewer" in got[-1].error

    run(body)


# ---------------------------------------------------------------- who may ask
def test_the_front_is_told_who_asks_and_with_what() -> None:
    async def body(world: World) -> None:
        metadata = (("authorization", "Bearer sesame"), ("x-forwarded-for", "10.1.2.3"))
        await world.call("ListModels", m.ListModelsRequest(), metadata=metadata)
        mine = [h for h in world.front.heads if "Authorization" in h]
        assert len(mine) == 1
        assert mine[0]["Authorization"] == "Bearer sesame"
        assert mine[0]["X-Forwarded-For"] == "10.1.2.3, 127.0.0.1"
        assert {h["X-Lipsync-Fast-Gateway"] for h in world.front.heads} == {SECRET}
        # Another client's requests do not go over this one's connection.
        await world.call("ListModels", m.ListModelsRequest())
        assert [h.get("Authorization") for h in world.front.heads[-1:]] == [None]

    run(body)


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED")],
)
def test_who_may_not_ask_gets_a_status(status: int, code: str) -> None:
    async def body(world: World) -> None:
        world.front.refuse = status
        for name, request in (
            ("GenerateInference", asks([1])[0]),
            ("GenerateBatchInference", m.BatchInferenceRequest(frame_ids=[1])),
            ("HealthCheck", m.HealthRequest()),
            ("ListModels", m.ListModelsRequest()),
            ("GetVideoFrame", m.GetVideoFrameRequest()),
        ):
            error = await status_of(world.call(name, request))
            assert error.code() == grpc.StatusCode[code], name
        stream = world.stub("StreamInference")(iter(asks([1])))
        assert (await status_of(stream.read())).code() == grpc.StatusCode[code]
        assert world.load.failed["grpc"] == 6

    run(body)


def test_a_full_server_says_so_in_band() -> None:
    async def body(world: World) -> None:
        world.front.refuse = 503
        got = await world.call("GenerateInference", asks([1])[0])
        assert (got.success, got.error) == (False, "no")
        assert not (await world.call("HealthCheck", m.HealthRequest())).healthy

    run(body)


def test_no_network_has_all_calls() -> None:
    shares = Shares(2, ["10.0.0.9"])
    with shares.call("10.0.0.1") as one, shares.call("10.0.0.1") as two:
        assert (one, two) == (True, True)
        with shares.call("10.0.0.1") as three, shares.call("10.0.0.2") as other:
            assert (three, other) == (False, True)
    for address in ("10.0.0.9", "127.0.0.1", "10.0.0.1"):
        with shares.call(address) as one, shares.call(address), shares.call(address) as three:
            assert (one, three) == (True, address != "10.0.0.1")


def test_addresses_of_peers() -> None:
    assert address_of("ipv4:10.0.0.1:4711") == "10.0.0.1"
    assert address_of("ipv6:%5B2001:db8::1%5D:4711") == "2001:db8::1"
    assert address_of("unix:") == "unix"
    assert address_of("") == ""


# ---------------------------------------------------------------- faults
def test_a_front_that_dies_is_asked_again() -> None:
    async def body(world: World) -> None:
        assert (await world.call("GenerateInference", asks([1])[0])).success
        world.front.die_after = 0
        assert (await world.call("GenerateInference", asks([2])[0])).success

    run(body)


def test_a_stream_outlives_a_front() -> None:
    async def body(world: World) -> None:
        stream = world.stub("StreamInference")()
        for number in range(3):
            await stream.write(asks([number])[0])
            assert (await stream.read()).success
        world.front.die_after = 0
        await stream.write(asks([3])[0])
        lost = await stream.read()
        assert (lost.success, lost.frame_id) == (False, 3)
        assert lost.error == "the server has lost what was asked; try again"
        await stream.write(asks([4])[0])
        found = await stream.read()
        assert (found.success, found.frame_id) == (True, 4)
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF

    run(body)


def test_a_stream_that_is_cut_frees_all_it_held() -> None:
    async def body(world: World) -> None:
        world.front.mute = True
        channel = world.dial()
        stream = world.stub("StreamInference", channel)()
        await stream.write(asks([1])[0])
        await until(lambda: any(a.get("model_name") == "demo" for a in world.front.asked))
        assert world.calls == 1
        await channel.close()
        await until(lambda: world.calls == 0)
        world.front.mute = False
        await until(lambda: world.fronts.links == 0 or world.front.open <= 1)
        assert (await world.call("GenerateInference", asks([2])[0])).success

    run(body)


def test_a_client_that_never_reads_is_held_up_then_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "STALLED_S", 1.0)

    async def body(world: World) -> None:
        world.front.jpeg = bytes(1 << 20)

        async def many() -> AsyncIterator[Any]:
            # All fit into what is sent unread: gRPC tells of a request that cannot be sent when the
            # call ends, and not of the call's status.
            for number in range(300):
                yield asks([number])[0]
            await asyncio.Event().wait()

        stream = world.stub("StreamInference")(many())
        await until(lambda: world.load.failed["grpc"] == 1)
        await until(lambda: world.calls == 0)
        assert len(world.front.asked) < 200, "what is not read is not made"
        error = await status_of(_drained(stream))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "no response was read" in error.details()

    run(body)


async def _drained(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("said", ["no JSON", "[]", b"\x00\x01", '{"success":true,"frames":7}'])
def test_a_front_that_answers_otherwise_is_an_error_in_band(said: str | bytes) -> None:
    async def body(world: World) -> None:
        world.front.say = said
        got = await world.call("GenerateInference", asks([1])[0])
        assert not got.success
        assert got.error
        batch = m.BatchInferenceRequest(frame_ids=[1, 2])
        got = (await world.call("GenerateBatchInference", batch)).responses
        assert [r.success for r in got] == [False, False]
        error = await status_of(world.call("GetVideoFrame", m.GetVideoFrameRequest()))
        assert error.code() == grpc.StatusCode.NOT_FOUND

    run(body)


GARBAGE = (
    b"\x00" * 4096,
    b"GET / HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
)


def test_garbage_on_the_port_hurts_nobody() -> None:
    async def body(world: World) -> None:
        writers = []
        for garbage in GARBAGE * 5:
            _, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(garbage)
            writers.append(writer)
        # A call whose message is no message.
        raw = world.channel.unary_unary(f"/{m.SERVICE}/GenerateInference")
        error = await status_of(raw(b"\xff\xff\xff", timeout=30))
        assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        unknown = world.channel.unary_unary(f"/{m.SERVICE}/MakeCoffee")
        error = await status_of(unknown(b"", timeout=30))
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED
        assert (await world.call("GenerateInference", asks([1])[0])).success
        for writer in writers:
            writer.close()

    run(body)


@pytest.mark.slow
def test_a_hundred_connections_at_once() -> None:
    async def body(world: World) -> None:
        channels = [world.dial() for _ in range(100)]
        stubs = [world.stub("GenerateInference", channel) for channel in channels]
        got = await asyncio.gather(
            *(stub(asks([i])[0], timeout=60) for i, stub in enumerate(stubs))
        )
        assert [r.frame_id for r in got] == list(range(100))
        assert all(r.success for r in got)
        await asyncio.gather(*(channel.close() for channel in channels))
        await until(lambda: world.calls == 0)
        assert world.fronts.links <= 65

    run(body)


def test_health_and_reflection() -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async def body(world: World) -> None:
        stub = health_pb2_grpc.HealthStub(world.channel)

        async def status(name: str = m.SERVICE) -> int:
            asked = health_pb2.HealthCheckRequest(service=name)
            return int((await stub.Check(asked, timeout=30)).status)

        async def becomes(wanted: int) -> None:
            async with asyncio.timeout(60):
                while await status() != wanted:
                    await asyncio.sleep(0.05)

        await becomes(health_pb2.HealthCheckResponse.SERVING)
        world.front.refuse = 503
        await becomes(health_pb2.HealthCheckResponse.NOT_SERVING)
        world.front.refuse = 0
        await becomes(health_pb2.HealthCheckResponse.SERVING)
        reflection = reflection_pb2_grpc.ServerReflectionStub(world.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection.ServerReflectionInfo(iter([request]))
        answer = await call.read()
        assert m.SERVICE in [s.name for s in answer.list_services_response.service]

    run(body)
