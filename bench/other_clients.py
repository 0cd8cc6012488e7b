# SPDX-License-Identifier: Apache-2.0
"""People of the soak test who speak other protocols, by the gateway: gRPC, and WebRTC.

Their libraries know asyncio or threads, not trio: each visit has a loop of its own, in a thread.
"""

from __future__ import annotations

import asyncio
import io
import random
import wave
from contextlib import suppress
from typing import Any

import trio

from lipsync_fast.frontend.playout.idle_rate import MOST_STRIDE
from lipsync_fast.timing import FPS, SAMPLE_RATE

CALL_S = 30.0
CHUNK = 1_280
"""Bytes of 40 ms, as the old service's gRPC cuts sound."""
AHEAD = 15
"""Chunks of sound that a batch needs beside one for each of its frames."""
FRAMES_S = 15.0
"""How long a peer waits for its pictures, beside the time that they take."""
RESTS_AT = FPS / MOST_STRIDE
"""Pictures a second that a session gets at least which rests, where others speak."""


async def old_rpc(place: Any, rng: random.Random) -> None:
    """Calls of the old service's gRPC: a batch of frames with their sound, and its neighbours."""
    pcm = place.some_speech(rng, 1.5, 2.5)
    await trio.to_thread.run_sync(_calls, place, rng, pcm)


def _calls(place: Any, rng: random.Random, pcm: bytes) -> None:
    import grpc

    from lipsync_fast.gateway.rpc import messages as m

    chunks = [pcm[at : at + CHUNK] for at in range(0, len(pcm) - CHUNK + 1, CHUNK)]
    count, first = len(chunks) - AHEAD, rng.randrange(-1_000, 1_000)
    with grpc.insecure_channel(place.grpc) as channel:

        def call(name: str, request: Any) -> Any:
            method = m.methods()[name]
            ask = channel.unary_unary(
                f"/{m.SERVICE}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=m.class_of(method.output_type).FromString,
            )
            return ask(request, timeout=CALL_S, wait_for_ready=True)

        batch = call(
            "GenerateBatchWithAudio",
            m.BatchInferenceWithAudioRequest(
                model_name="demo", start_frame_id=first, frame_count=count, audio_chunks=chunks
            ),
        )
        place.counts.seen["rpc pictures"] += len(batch.responses)
        bad = [r.error for r in batch.responses if not r.success]
        if len(batch.responses) != count or bad:
            place.counts.note_wrong(f"rpc: {len(batch.responses)} of {count} came: {bad[:2]}")
        call("HealthCheck", m.HealthRequest())
        call("GetStats", m.StatsRequest())


async def peer(place: Any, rng: random.Random) -> None:
    """A browser: watches by WebRTC, has a recording said, and leaves, politely or not."""
    pcm = place.some_speech(rng, 1.0, 3.0)
    await trio.to_thread.run_sync(lambda: asyncio.run(_watch(place, rng, pcm)))


async def _watch(place: Any, rng: random.Random, pcm: bytes) -> None:
    import aiohttp
    from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
    from aiortc.mediastreams import MediaStreamError

    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    wanted, came = rng.randint(20, 150), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def take(track: Any) -> None:
        seen = 0
        with suppress(MediaStreamError):
            while True:
                await track.recv()
                seen += 1
                if track.kind == "video":
                    place.counts.seen["peers' pictures"] += 1
                    if seen == wanted:
                        came.set()

    pc.on("track", lambda track: tasks.append(asyncio.create_task(take(track))))
    pc.addTransceiver("video", direction="recvonly")
    pc.addTransceiver("audio", direction="recvonly")
    await pc.setLocalDescription(await pc.createOffer())
    offer, form = pc.localDescription.sdp, {"Content-Type": "application/sdp"}
    try:
        async with aiohttp.ClientSession(place.webrtc) as http:
            async with http.post("/whep", data=offer, headers=form) as answer:
                sdp, at = await answer.text(), answer.headers.get("Location", "")
                if answer.status == 503:
                    place.counts.seen["peers sent away"] += 1
                    return
                if answer.status != 201:
                    place.counts.note_wrong(f"an offer was answered by {answer.status}: {sdp[:80]}")
                    return
            await pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
            if rng.random() < 0.6:
                await http.post(f"{at}/audio", data=_recording(pcm))
            try:
                async with asyncio.timeout(FRAMES_S + wanted / RESTS_AT):
                    await came.wait()
            except TimeoutError:
                place.counts.note_wrong(f"a peer got fewer than {wanted} pictures")
            if rng.random() < 0.6:
                await http.delete(at)
            elif rng.random() < 0.5:  # the cable is cut
                for each in pc.getTransceivers():
                    for protocol in each.receiver.transport.transport._connection._protocols:
                        protocol.transport.abort()
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await pc.close()
        for task in tasks:
            task.cancel()


def _recording(pcm: bytes) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm)
    return out.getvalue()
