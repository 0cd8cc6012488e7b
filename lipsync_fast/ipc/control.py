# SPDX-License-Identifier: Apache-2.0
"""Control messages between the supervisor and its children, over ZeroMQ.

The supervisor binds one socket in a private folder (0700, so no other user can connect); fronts,
engines and the gateway connect to it, each under its name. Nothing bulky goes here: sound and
pictures go through rings, and the rings' descriptors through a Unix socket that a child is born
with (``ipc.offers``). The two ends are ``ipc.control_socket``'s.

    child ─► supervisor    Hello, Ready, Heartbeat, Bye
    front ─► supervisor    FrontHeartbeat, WantAvatar, Uses
    gateway ─► supervisor  GatewayHeartbeat, Uses
    engine ─► supervisor   AvatarState
    supervisor ─► child    LoadAvatar, UnloadAvatar, PeerGone, Drain, Stop
    supervisor ─► front, gateway  NewCertificate, Uses
    supervisor ─► front    Engines, StatusReply (every second)
    status ─► supervisor   StatusRequest; answered by StatusReply
    doctor ─► supervisor   SettingsRequest; answered by SettingsReply
    anyone ─► supervisor   ChangeAvatar; answered by AvatarChanged

Every message carries its type's tag, and Hello the version: who speaks another one is told to stop.
A message that cannot be read is counted and ignored. A peer that does not read loses messages
beyond a bound, and does not hold up the sender; heartbeats are what tells that it is gone.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lipsync_fast.certificates import Certificate
from lipsync_fast.histograms import Durations
from lipsync_fast.tokens.usage import Use

VERSION = 2
MOST_QUEUED = 1000
"""Messages to a peer that does not read; more are dropped."""
LONGEST = 1 << 20
MOST_USES = 4_000
"""Accounts in a message."""

Name = Annotated[str, Meta(min_length=1, max_length=1000)]
Amount = Annotated[int, Meta(ge=0)]


class Message(msgspec.Struct, tag=True, kw_only=True):
    """Base of all."""


class Hello(Message):
    """A child is there.

    Attributes:
        role: "front", "engine" or "gateway".
        pid: its process.
        device: what an engine runs on, such as "cpu" or "cuda:0".
        version: of these messages.
    """

    role: str
    pid: int
    device: str = ""
    version: int = VERSION


class Load(msgspec.Struct, kw_only=True):
    """What an engine has to do, has done, and holds.

    Attributes:
        inferences: frames that a network made.
        encoded: pictures of streams of H.264; encodes_per_s: that could be now, 0 where none can.
        store: counts of frames that are kept (``utterances.write_behind``); store_bytes: of all
            that is kept, by whomever.
        spent_s: processor time of the host, by what it was spent on; only grows.
        queue_time: how long spoken frames that were begun had waited in the engine; frame_time:
            how long they took from there to their pictures; stages: how long each part of that
            took by the clock, of a frame or of a batch.
        device_memory_used, device_memory_total: bytes of its GPU, whoever uses them; 0 on a CPU.
        avatar_bytes: what caches hold of avatars, by the versions' keys; the largest alone where
            there are very many. avatar_shared: the same of memory that engines share.
    """

    waiting: Amount = 0
    in_flight: Amount = 0
    made: Amount = 0
    skipped: Amount = 0
    failed: Amount = 0
    dropped: Amount = 0
    damaged: Amount = 0
    inferences: Amount = 0
    encoded: Amount = 0
    encodes_per_s: float = 0.0
    store: dict[str, int] = msgspec.field(default_factory=dict)
    store_bytes: Amount = 0
    frames_per_s: float = 0.0
    oldest_ms: float = 0.0
    cache_bytes: dict[str, int] = msgspec.field(default_factory=dict)
    spent_s: dict[str, float] = msgspec.field(default_factory=dict)
    queue_time: Durations = msgspec.field(default_factory=Durations)
    frame_time: Durations = msgspec.field(default_factory=Durations)
    stages: dict[str, Durations] = msgspec.field(default_factory=dict)
    device_memory_used: Amount = 0
    device_memory_total: Amount = 0
    avatar_bytes: dict[str, int] = msgspec.field(default_factory=dict)
    avatar_shared: dict[str, int] = msgspec.field(default_factory=dict)


class Ready(Message):
    """An engine has loaded the avatars it was born with, and takes jobs; a front accepts.

    Attributes:
        capacity: frames a second that an engine makes, measured; 0 for a front.
        maker: what an engine's pictures depend on besides their jobs (``utterances.keys``).
        encodes_per_s: pictures of streams of H.264 that it can encode; 0 where it has no encoder.
    """

    capacity: float = 0.0
    maker: str = ""
    encodes_per_s: float = 0.0


class Heartbeat(Message):
    """An engine lives. Sent by its working loop, so a loop that stands still sends none.

    Attributes:
        speed: what it makes now, as a part of what it has measured.
    """

    load: Load = msgspec.field(default_factory=Load)
    speed: Annotated[float, Meta(gt=0, le=1)] = 1.0


class FrontHeartbeat(Message):
    """A front lives; ``load`` is a status.FrontLoad as plain data."""

    load: msgspec.Raw


class GatewayHeartbeat(Message):
    """A gateway lives; ``load`` is a status.GatewayLoad as plain data."""

    load: msgspec.Raw


class WantAvatar(Message):
    """A front needs an avatar that engines may not have loaded; nothing when they have."""

    name: Name


class AvatarState(Message):
    """An engine has loaded an avatar (error empty), or could not.

    Attributes:
        in_use: it was loaded, and has failed since then.
    """

    name: Name
    error: str = ""
    in_use: bool = False


class Bye(Message):
    """A child is about to leave, having done all it had; or for a reason, such as a lost GPU."""

    reason: str = ""


class LoadAvatar(Message):
    """Make a version of an avatar available under its key."""

    name: Name
    path: str


class UnloadAvatar(Message):
    """Jobs that name it may be refused from now on."""

    name: Name


class EngineInfo(msgspec.Struct, kw_only=True):
    """What fronts know of an engine.

    Attributes:
        active: it may be given jobs; a spare is kept for when another one dies.
        avatars: loaded there.
        errors: avatars that it could not load, with the reasons.
        capacity: frames a second that it could make now.
        frames_per_s: that it makes now, for all fronts.
        maker: see ``Ready``.
        encodes_per_s: pictures of streams of H.264 that it can encode; 0 where it has no encoder.
    """

    name: str
    device: str
    active: bool
    capacity: float
    avatars: list[str]
    errors: dict[str, str] = msgspec.field(default_factory=dict)
    frames_per_s: float = 0.0
    maker: str = ""
    encodes_per_s: float = 0.0


class AvatarVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The version of an avatar that sessions which begin now get.

    Attributes:
        name: as clients know it; key: as jobs and engines do.
        number: 1 is the first one of that name.
        path: where its files can be opened, also when others have taken their place.
    """

    name: str
    key: str
    number: Amount
    path: str


class Engines(Message):
    """All engines that live, whenever something about them has changed, and every second.

    Attributes:
        engines: those that are not here are gone.
        speakers: how many sessions may speak at once, in all fronts.
        others: how many speak in other fronts; encoding: what is encoded for them there, counted
            in speakers.
        avatars: in use; others come into use when a front wants them.
        unloaded: names that are refused until somebody loads them again.
        refused: names that could not be had lately, with the reasons.
        catalogue: raised with every change of what is in use or unloaded.
    """

    engines: list[EngineInfo]
    speakers: Amount = 0
    others: Amount = 0
    encoding: float = 0.0
    avatars: list[AvatarVersion] = []
    unloaded: list[str] = []
    refused: dict[str, str] = {}
    catalogue: Amount = 0


class PeerGone(Message):
    """A front or engine has died or left; its rings are void."""

    peer: Name


class Uses(Message):
    """What accounts use, of those where that has changed: from a front or gateway, there; to one,
    in all others, those that have gone included."""

    of: dict[str, Use]

    @classmethod
    def parts(cls, uses: dict[str, Use]) -> list[Uses]:
        """As many messages as it takes: each has a bound."""
        items = list(uses.items())
        starts = range(0, len(items), MOST_USES)
        return [cls(of=dict(items[start : start + MOST_USES])) for start in starts]


class Drain(Message):
    """Take nothing new; end what has begun; then say Bye."""


class Stop(Message):
    """Leave at once."""


class NewCertificate(Message):
    """Greet those that come from now on with this one."""

    certificate: Certificate


class StatusRequest(Message):
    """Asked by ``lipsync-fast status``."""


class StatusReply(Message):
    """All that the supervisor knows, as plain data."""

    status: msgspec.Raw


class SettingsRequest(Message):
    """Asked by ``lipsync-fast doctor --production``."""


class SettingsReply(Message):
    """What the server was configured with: a ServeConfig as plain data, secrets covered."""

    settings: msgspec.Raw


class ChangeAvatar(Message):
    """Load an avatar, or what has taken its place; or unload it.

    Attributes:
        request: comes back with the answer.
        path: of the package; looked for by its name where empty.
        anywhere: it may lie outside of the folders of avatars.
    """

    request: Name
    action: Literal["load", "unload"]
    name: Name
    path: Annotated[str, Meta(max_length=4096)] = ""
    anywhere: bool = False


Change = Literal["loaded", "unchanged", "unloaded", "missing", "refused", "late"]


class AvatarChanged(Message):
    """What became of a change.

    Attributes:
        state: loaded or unloaded: so it is now; unchanged: it was so before; missing: there is no
            such avatar; refused: it cannot be, all is as it was; late: not done in time.
        version: that sessions get now; 0 for none.
        reason: a sentence; empty where there is nothing to say.
    """

    request: str
    name: str
    state: Change
    version: Amount = 0
    reason: str = ""


AnyMessage = (
    Hello
    | Ready
    | Heartbeat
    | FrontHeartbeat
    | GatewayHeartbeat
    | WantAvatar
    | AvatarState
    | Bye
    | LoadAvatar
    | UnloadAvatar
    | Engines
    | PeerGone
    | Drain
    | Stop
    | NewCertificate
    | Uses
    | StatusRequest
    | StatusReply
    | SettingsRequest
    | SettingsReply
    | ChangeAvatar
    | AvatarChanged
)
