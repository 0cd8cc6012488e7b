# SPDX-License-Identifier: Apache-2.0
"""What the server says of itself: to ``lipsync-fast status``, /stats, /health and /metrics."""

from __future__ import annotations

from typing import Literal

import msgspec

from lipsync_fast.histograms import Durations, Exemplar
from lipsync_fast.ipc.control import Load

EngineState = Literal["starting", "ready", "spare", "draining", "gone"]


class EngineStatus(msgspec.Struct, kw_only=True):
    """An engine process.

    Attributes:
        name: of this process; slot: the place that it fills, which its successors fill after it.
        restarts: how often that place has been filled again.
        capacity: frames a second that it can make now: what it has measured, or less while frames
            take longer.
        silent_s: since its last heartbeat.
        reason: how the last process of that place ended, until its successor has worked for a
            while; nothing where none has ended.
        retry_s: until that place is filled again; 0 where it is.
    """

    name: str
    slot: int
    pid: int
    device: str
    state: EngineState
    uptime_s: float
    restarts: int
    avatars: list[str]
    capacity: float
    silent_s: float
    load: Load
    reason: str = ""
    retry_s: float = 0.0


class FrontLoad(msgspec.Struct, kw_only=True):
    """What a front has done since it began; counts only grow.

    Attributes:
        connections, sessions, speaking: now; opened: connections, ever. encoding: what is encoded
            for those that speak and get H.264, counted in speakers.
        refused: connections, sessions and utterances, by reason.
        requests: of the old protocols, answered with a picture; request_errors: with an error.
        frames: sent, of lipsync.v1; idle_frames: of these, without speech; late: slots of speech
            whose frame was not ready, and which showed the last one again; skipped: left out for
            slow readers.
        bytes: of the pictures that were sent.
        errors: of clients and of the server, by code; ``engine_lost`` of an old client, which is
            not told of it: it got the avatar's own picture.
        latency_ms: from a spoken frame's last needed sample to its bytes on the socket, over the
            last minute or the last 20,000 frames: p50, p95, p99, most.
        latency_counts: how many of all spoken frames took how long: by the upper end in seconds,
            those up to the next lower one not included; latency_sum_ms: of all of them.
        first_picture: of utterances at their own pace, from their first sound to their first
            picture on the socket; session_time: how long sessions that have ended lasted.
        exemplars: of ``latency`` and ``first_picture``, by bucket, the last one that is traced.
        queued_s: sound of all sessions that has come and has no slot yet.
        redispatched: jobs of lost engines that were given to another.
        rest_stride: sessions that rest are shown one slot in so many; speech_stride: those that
            speak.
        left_out: frames of speech that were not made, with a stride of more than one or since a
            client's clock is fast.
        avatars: sessions, old clients and requests that use a version of an avatar, by its key.
        catalogue: number of the newest one that this front has heard of.
        utterances: by whether they were kept: ``hits``, ``misses``; begun ``at_once``; ``named``:
            said by name.
        texts: that were begun: ``said`` to their end, ``failed``, or ``cut``: interrupted, refused
            as sound is, or their session has ended; text_characters: of all of them.
    """

    connections: int = 0
    sessions: int = 0
    speaking: int = 0
    encoding: float = 0.0
    opened: int = 0
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    requests: int = 0
    request_errors: int = 0
    frames: int = 0
    idle_frames: int = 0
    late: int = 0
    skipped: int = 0
    bytes: int = 0
    errors: dict[str, int] = msgspec.field(default_factory=dict)
    latency_ms: dict[str, float] = msgspec.field(default_factory=dict)
    latency_counts: dict[str, int] = msgspec.field(default_factory=dict)
    latency_sum_ms: float = 0.0
    first_picture: Durations = msgspec.field(default_factory=Durations)
    session_time: Durations = msgspec.field(default_factory=Durations)
    exemplars: dict[str, dict[str, Exemplar]] = msgspec.field(default_factory=dict)
    queued_s: float = 0.0
    redispatched: int = 0
    rest_stride: int = 1
    speech_stride: int = 1
    left_out: int = 0
    avatars: dict[str, int] = msgspec.field(default_factory=dict)
    catalogue: int = 0
    utterances: dict[str, int] = msgspec.field(default_factory=dict)
    texts: dict[str, int] = msgspec.field(default_factory=dict)
    text_characters: int = 0


class AvatarStatus(msgspec.Struct, kw_only=True):
    """A version of an avatar that engines hold, or are to; or a name that was unloaded.

    Attributes:
        version: 1 is the first one of that name; 0 before it came into use, and where it was
            unloaded and nothing is left.
        state: current: sessions that begin get it; loading: into engines, for the first time;
            leaving: sessions that began with it go on; unloaded: nobody gets it.
        uses: sessions, old clients and requests that use it, in all fronts.
        engines: that hold it.
        loaded_s: since it came into use; before that, since it was asked for.
        cached_bytes: what engines' caches hold of it, in all; shared_bytes: what they hold in
            common.
    """

    name: str
    version: int
    state: Literal["current", "loading", "leaving", "unloaded"]
    uses: int = 0
    engines: list[str] = msgspec.field(default_factory=list)
    loaded_s: float = 0.0
    cached_bytes: int = 0
    shared_bytes: int = 0


class FrontStatus(msgspec.Struct, kw_only=True):
    """A front process; ``frames_per_s``: sent, of lipsync.v1, over the last three seconds."""

    name: str
    pid: int
    state: Literal["starting", "ready", "draining", "gone"]
    uptime_s: float
    restarts: int
    load: FrontLoad
    frames_per_s: float = 0.0


class GatewayLoad(msgspec.Struct, kw_only=True):
    """What a gateway has done since it began; counts only grow.

    Attributes:
        calls: being answered now, by protocol.
        begun: calls ever, by protocol and name, such as "grpc/StreamInference".
        failed: calls that ended otherwise than well, by protocol.
        refused: requests that were answered by words instead of a picture, by protocol.
        pictures, bytes: sent, by protocol.
        links: connections to fronts, now.
    """

    calls: dict[str, int] = msgspec.field(default_factory=dict)
    begun: dict[str, int] = msgspec.field(default_factory=dict)
    failed: dict[str, int] = msgspec.field(default_factory=dict)
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    pictures: dict[str, int] = msgspec.field(default_factory=dict)
    bytes: dict[str, int] = msgspec.field(default_factory=dict)
    links: int = 0


class GatewayStatus(msgspec.Struct, kw_only=True):
    """A process that speaks other protocols.

    Attributes:
        ports: by protocol.
        restarts: how often its place has been filled again.
        reason: how the last process of that place ended, until its successor has worked for a
            while.
    """

    name: str
    pid: int
    state: Literal["starting", "ready", "draining", "gone"]
    uptime_s: float
    restarts: int
    ports: dict[str, list[int]]
    load: GatewayLoad
    reason: str = ""


class ServerStatus(msgspec.Struct, kw_only=True):
    """The server as a whole.

    Attributes:
        ports: of the stream protocols; http_port: of HTTP.
        capacity: frames a second of all ready engines; speakers: how many may speak at once.
        frames_per_s: sent by all fronts.
        ignored: control messages that could not be read.
        avatars: in use, leaving or unloaded; others that lie in the folders are loaded when wanted.
        gateways: none where no other protocol is served.
    """

    version: str
    pid: int
    state: Literal["starting", "serving", "draining"]
    uptime_s: float
    host: str
    ports: list[int]
    http_port: int
    default_avatar: str
    engines: list[EngineStatus]
    fronts: list[FrontStatus]
    capacity: float
    speakers: int
    frames_per_s: float
    ignored: int
    avatars: list[AvatarStatus] = msgspec.field(default_factory=list)
    gateways: list[GatewayStatus] = msgspec.field(default_factory=list)


read_status = msgspec.msgpack.Decoder(ServerStatus).decode
"""A status as it was sent."""
read_load = msgspec.msgpack.Decoder(FrontLoad).decode
"""A front's."""
read_gateway_load = msgspec.msgpack.Decoder(GatewayLoad).decode
"""A gateway's."""
