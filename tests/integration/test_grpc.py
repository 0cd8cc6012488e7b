# SPDX-License-Identifier: Apache-2.0
"""gRPC of a real server: all ten rpcs, exact pictures, a token, and processes that are killed.

One server for all tests, in their order: processes of it die.
"""

from __future__ import annotations

import io
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from talking import ALONE

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")

from lipsync_fast.audio.pcm import Resampler  # noqa: E402
from lipsync_fast.audio.windows import BlockStream  # noqa: E402
from lipsync_fast.avatars.library import shipped_folder  # noqa: E402
from lipsync_fast.avatars.package import AvatarPackage  # noqa: E402
from lipsync_fast.client.local import LocalServer  # noqa: E402
from lipsync_fast.engine.backends import create_backend  # noqa: E402
from lipsync_fast.engine.backends.base import SQUARE, RegionJob  # noqa: E402
from lipsync_fast.gateway.rpc import messages as m  # noqa: E402

pytestmark = pytest.mark.slow
CHUNK, COUNT, PATIENCE_S = 1_920, 40, 120.0
TOKEN = "open sesame"
SHOWN = (("authorization", f"Bearer {TOKEN}"),)


class Grpc:
    """A client of a server's gRPC port."""

    def __init__(self, server: LocalServer) -> None:
        (gateway,) = server.status().gateways
        self.channel = grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc'][0]}")

    def stub(self, name: str) -> Any:
        method = m.methods()[name]
        make = self.channel.stream_stream if method.client_streaming else self.channel.unary_unary
        return make(
            f"/{m.SERVICE}/{name}",
            request_serializer=m.class_of(method.input_type).SerializeToString,
            response_deserializer=m.class_of(method.output_type).FromString,
        )

    def call(self, name: str, request: Any, metadata: Any = SHOWN) -> Any:
        return self.stub(name)(request, timeout=PATIENCE_S, metadata=metadata, wait_for_ready=True)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    config = {"listen": {"grpc_ports": [0], "token": TOKEN}, "engines": ALONE}
    with LocalServer(config, start_s=180) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Grpc]:
    made = Grpc(server)
    yield made
    made.channel.close()


def until(found: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain until {what}")


def sound() -> bytes:
    """Speech-like noise with a silence in it, int16 at 24 kHz."""
    rng = np.random.default_rng(5)
    loud = np.repeat(rng.uniform(200, 9000, 8 + COUNT + 24), CHUNK // 2)
    made = (rng.standard_normal(len(loud)) * loud).clip(-32768, 32767).astype("<i2")
    made[20 * CHUNK // 2 : 30 * CHUNK // 2] = 0
    return made.tobytes()


def chunks() -> list[bytes]:
    pcm = sound()
    return [pcm[at : at + CHUNK] for at in range(0, len(pcm), CHUNK)]


@pytest.fixture(scope="module")
def rendered() -> list[NDArray[np.uint8]]:
    """The regions of frames 0 on, as the offline pipeline makes them of the whole sound."""
    pcm = np.frombuffer(sound(), "<i2").astype(np.float32) / 32768
    resampler, backend = Resampler(24_000), create_backend("cpu")
    with AvatarPackage.open(shipped_folder() / "demo.lsa") as package:
        avatar, manifest = backend.load(package), package.manifest
        blocks = BlockStream(manifest.audio, lambda windows: backend.features(avatar, windows))
        stream = [*blocks.push(np.concatenate([resampler.push(pcm), resampler.finish()]))]

        def shown(place: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
            out = io.BytesIO()
            Image.fromarray(image).save(out, "JPEG", quality=manifest.jpeg.quality, subsampling=2)
            return decoded(out.getvalue())

        jobs = [
            RegionJob(avatar, manifest.avatar_frame(k), stream[k + 8], part=SQUARE)
            for k in range(COUNT)
        ]
        made = [backend.submit([job], shown)[0].result() for job in jobs]
        backend.close()
    return made


def in_time(server: LocalServer, ask: Callable[[], Any]) -> Any:
    """What is asked for, once more where a machine that is too busy has not made all of it.

    A picture that no engine makes within 10 s is the avatar's own one instead, and logged.
    """

    def unmade() -> int:
        return server.log_path.read_text().count("sent the avatar's own picture")

    for _ in range(5):
        before, got = unmade(), ask()
        if unmade() == before:
            break
    return got


def decoded(jpeg: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


# ---------------------------------------------------------------- pictures
def test_a_batch_with_sound_is_that_of_a_render(
    server: LocalServer, client: Grpc, rendered: list[NDArray[np.uint8]]
) -> None:
    request = m.BatchInferenceWithAudioRequest(
        model_name="demo", start_frame_id=0, frame_count=COUNT, audio_chunks=chunks()
    )
    got = in_time(server, lambda: client.call("GenerateBatchWithAudio", request).responses)
    assert [r.frame_id for r in got] == list(range(COUNT))
    for k, response in enumerate(got):
        assert response.success, response.error
        assert np.array_equal(decoded(response.prediction_data), rendered[k]), k


def test_a_stream_with_sound_is_that_of_a_render(
    server: LocalServer, client: Grpc, rendered: list[NDArray[np.uint8]]
) -> None:
    pcm = sound()

    def requests() -> Iterator[Any]:
        for k in range(COUNT):
            window = pcm[k * CHUNK : (k + 8 + 1 + 14) * CHUNK]
            yield m.OptimizedInferenceRequest(model_name="demo", frame_id=k, audio=window)

    stub = client.stub("StreamInference")
    got = in_time(server, lambda: list(stub(requests(), timeout=PATIENCE_S, metadata=SHOWN)))
    assert [r.frame_id for r in got] == list(range(COUNT))
    for k, response in enumerate(got):
        assert np.array_equal(decoded(response.prediction_data), rendered[k]), k


def test_negative_ids_are_frames_like_others(client: Grpc) -> None:
    """They go through the same loop: -1 is shown by the picture that lies before that of 0."""
    request = m.BatchInferenceRequest(model_name="demo", frame_ids=[-1, 199, -2, 198, 0])
    got = client.call("GenerateBatchInference", request).responses
    assert [r.frame_id for r in got] == [-1, 199, -2, 198, 0]
    with AvatarPackage.open(shipped_folder() / "demo.lsa") as package:
        frames = [package.manifest.avatar_frame(r.frame_id) for r in got]
    shown = {frame: r.prediction_data for frame, r in zip(frames, got, strict=True)}
    assert all(r.prediction_data == shown[f] for f, r in zip(frames, got, strict=True))


# ---------------------------------------------------------------- questions
def test_the_others(client: Grpc) -> None:
    one = client.call("GenerateInference", m.OptimizedInferenceRequest(frame_id=3))
    assert one.success
    assert one.prediction_shape == "256x256x3"
    models = client.call("ListModels", m.ListModelsRequest())
    assert "demo" in models.loaded_models
    assert models.count == len(models.loaded_models)
    health = client.call("HealthCheck", m.HealthRequest())
    assert (health.healthy, health.status) == (True, "SERVING")
    loaded = client.call("LoadPackage", m.LoadPackageRequest(package_name="demo"))
    assert (loaded.success, loaded.frame_count, loaded.device) == (True, 100, "cpu")
    stats = client.call("GetStats", m.StatsRequest(model_name="demo"))
    assert stats.total_requests > 2 * COUNT
    about = client.call("GetModelMetadata", m.GetModelMetadataRequest(model_name="demo"))
    assert (about.frame_count, list(about.bounds)) == (100, list(one.bounds))
    frame = client.call(
        "GetVideoFrame",
        m.GetVideoFrameRequest(model_name="demo", frame_id=3, video_type="full_body"),
    )
    assert decoded(frame.frame_data).shape == (720, 1280, 3)
    nobody = client.call("GenerateInference", m.OptimizedInferenceRequest(model_name="nobody"))
    assert (nobody.success, nobody.error) == (False, "Unknown model 'nobody'; loaded: demo, ben")


def test_what_a_gateway_has_done_is_told(server: LocalServer, client: Grpc) -> None:
    def now() -> Any:
        return server.status().gateways[0]

    before = now()
    assert before.name.startswith("gateway-")
    assert (before.state, before.uptime_s > 0) == ("ready", True)
    assert client.call("GenerateInference", m.OptimizedInferenceRequest(frame_id=3)).success
    nobody = m.OptimizedInferenceRequest(model_name="nobody", frame_id=3)
    assert not client.call("GenerateInference", nobody).success
    unknown = m.GetVideoFrameRequest(model_name="nobody", frame_id=3, video_type="full_body")
    with pytest.raises(grpc.RpcError):
        client.call("GetVideoFrame", unknown)
    with pytest.raises(grpc.RpcError):
        client.call("ListModels", m.ListModelsRequest(), ())
    stream = client.stub("StreamInference")(_endless(), metadata=SHOWN)
    assert next(stream).success
    busy = until(
        lambda: (n := now().load).calls.get("grpc") and n.links and n, "the stream is counted"
    )
    assert busy.calls["grpc"] >= 1
    assert busy.links >= 1
    load = until(lambda: (n := now().load).failed.get("grpc") and n, "the failed call is counted")
    stream.cancel()
    old = before.load
    assert load.begun["grpc/GenerateInference"] >= old.begun.get("grpc/GenerateInference", 0) + 2
    assert load.refused["grpc"] > old.refused.get("grpc", 0)
    assert load.failed["grpc"] > old.failed.get("grpc", 0)
    assert load.pictures["grpc"] >= old.pictures.get("grpc", 0) + 2
    assert load.bytes["grpc"] > old.bytes.get("grpc", 0)


def test_the_token_is_asked_for(client: Grpc) -> None:
    for metadata in ((), (("authorization", "Bearer wrong"),)):
        with pytest.raises(grpc.RpcError) as caught:
            client.call("ListModels", m.ListModelsRequest(), metadata)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_the_inner_port_is_for_the_gateway_alone(server: LocalServer) -> None:
    (gateway,) = server.status().gateways
    own = {server.url.rpartition(":")[2], server.http_url.rpartition(":")[2]}
    inner = _listening(server.pid) - own - {str(gateway.ports["grpc"][0])}
    assert inner
    for port in inner:
        for headers in ({}, {"X-Lipsync-Fast-Gateway": "x"}, {"Authorization": f"Bearer {TOKEN}"}):
            upgrade = {
                "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **headers,
            }  # fmt: skip
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/", headers=upgrade)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(asked, timeout=60)
            assert caught.value.code == 403
            caught.value.close()


def _listening(pid: int) -> set[str]:
    """Ports of TCP sockets that a process holds, and that listen."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    table = Path(f"/proc/{pid}/net/tcp").read_text()
    lines = [line.split() for line in table.splitlines()[1:]]
    return {str(int(x[1].split(":")[1], 16)) for x in lines if x[3] == "0A" and x[9] in inodes}


# ---------------------------------------------------------------- faults
def test_a_gateway_that_is_killed_in_mid_stream(server: LocalServer, client: Grpc) -> None:
    from websockets.sync.client import connect

    headers = {"Authorization": f"Bearer {TOKEN}"}
    with connect(server.url, additional_headers=headers, proxy=None) as other:
        other.send('{"type":"list_models"}')
        before = other.recv()
        stream = client.stub("StreamInference")(_endless(), metadata=SHOWN)
        assert next(stream).success
        (gateway,) = server.status().gateways
        assert gateway.load.begun["grpc/StreamInference"] >= 1
        os.kill(gateway.pid, signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as caught:
            for _ in stream:
                pass
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

        def succeeded() -> Any:
            status = server.status()
            (now,) = status.gateways
            # Only this test's own connection is left, and the new gateway's question for health.
            freed = status.fronts[0].load.connections <= 2
            return now if now.pid != gateway.pid and now.state == "ready" and freed else None

        heir = until(succeeded, "another gateway serves, and the dead one's connections are gone")
        assert (heir.restarts, heir.ports) == (1, gateway.ports)
        assert heir.pid != gateway.pid
        assert "signal 9" in heir.reason
        other.send('{"type":"list_models"}')
        while (after := other.recv()).startswith('{"type":"stats"'):
            pass
        assert after == before
    one = client.call("GenerateInference", m.OptimizedInferenceRequest(frame_id=1))
    assert one.success
    asked = urllib.request.Request(f"{server.http_url}/metrics", headers=headers)

    def counted() -> bool:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return b"\nlipsync_fast_gateway_restarts_total 1.0\n" in answer.read()

    until(counted, "metrics count the restart")


def _endless() -> Iterator[Any]:
    for k in range(1_000_000):
        yield m.OptimizedInferenceRequest(model_name="demo", frame_id=k)


def test_a_front_that_is_killed_is_waited_for(server: LocalServer, client: Grpc) -> None:
    os.kill(server.status().fronts[0].pid, signal.SIGKILL)

    def made() -> bool:
        # Whatever comes meanwhile is in band: nothing is raised here.
        return bool(client.call("GenerateInference", m.OptimizedInferenceRequest()).success)

    until(made, "the front's successor answers")


def test_a_server_that_drains_ends_its_calls(server: LocalServer, client: Grpc) -> None:
    server.terminate()
    assert server.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log_path.read_text()
