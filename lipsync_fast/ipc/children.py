# SPDX-License-Identifier: Apache-2.0
"""What a child process is told at its birth: one JSON object on standard input.

The supervisor starts ``lipsync_fast.engine.process``, ``lipsync_fast.frontend.process`` and
``lipsync_fast.gateway.process``, by way of ``birth``, with the descriptors named here open
(``pass_fds``), and writes the object. It is the only thing a child reads from there; standard error
is for its log. A child leaves by itself when its end of the ring socket says that the supervisor
has gone; the kernel ends one that cannot.
"""

from __future__ import annotations

import sys
from typing import Literal, TypeVar

import msgspec

from lipsync_fast.certificates import Certificate
from lipsync_fast.config import Log, ServeConfig, Utterances


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's task.

    Attributes:
        name: unique among all processes that this server ever started.
        folder: of the control socket.
        rings_fd: its end of the ring socket.
        device: "cpu" or "cuda:N"; that GPU is the only one that its process sees, as number 0.
        threads: of the CPU backend; None for its own choice.
        memory_mb: that the process of a CPU engine may take for itself; chosen where 0.
        kernels: of the CPU backend's decoder.
        precision: of the CUDA backend's networks.
        processors: next to its GPU, to keep all its threads on; all where empty.
        avatars: name to path of those to load before it says Ready, the default one first.
        require_signed: file of the keys of which one must have signed each avatar; empty: any.
        heartbeat_s: how often to send Heartbeat.
        capacity: frames a second that an engine of this kind makes, where it is known; else it is
            measured, which takes all threads for a quarter of a second, from others' work, too.
        modest: others work: leave them the processors until there is a job. Its session was given
            the lowest priority, and it takes that back.
        utterances: what is kept of them, and where.
    """

    name: str
    folder: str
    rings_fd: int
    device: str = "cpu"
    threads: int | None = None
    memory_mb: int = 0
    kernels: str = "auto"
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    processors: list[int] = []
    avatars: dict[str, str] = {}
    require_signed: str = ""
    heartbeat_s: float = 0.25
    capacity: float = 0.0
    modest: bool = False
    utterances: Utterances = Utterances(disk_mb=0)
    log: Log = Log()


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """A listening socket that the supervisor has bound; ``inner``: for the gateway alone."""

    fd: int
    kind: Literal["stream", "http", "inner"]
    port: int


class FrontSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A front's task.

    Attributes:
        name: unique among all processes that this server ever started.
        folder: of the control socket.
        rings_fd: its end of the ring socket.
        listeners: what to accept from.
        secret: what the gateway shows at the inner listener; none where there is none.
        tickets_secret, tickets_fd: what all fronts of a server share of tickets
            (``tokens.tickets``).
        certificate: under which all but that one speak TLS; none do where it is None.
    """

    name: str
    folder: str
    rings_fd: int
    listeners: list[Listener]
    config: ServeConfig
    secret: str = ""
    tickets_secret: str = ""
    tickets_fd: int = -1
    certificate: Certificate | None = None


class GatewaySpec(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway's task.

    Attributes:
        name: unique among all processes that this server ever started.
        folder: of the control socket.
        rings_fd: its end of the ring socket; no rings come, but its end says that the supervisor
            has gone.
        url: of the fronts' inner listener; secret: what it asks for. It is nobody else's to know.
        host: address to listen on; grpc_ports and the like: which the supervisor keeps for it.
        uptime_s: of the server, when this was written.
        certificate: under which it speaks TLS with clients; it does not where None.
    """

    name: str
    folder: str
    rings_fd: int
    url: str
    secret: str
    host: str
    config: ServeConfig
    grpc_ports: list[int] = []
    webrtc_ports: list[int] = []
    livekit_ports: list[int] = []
    uptime_s: float = 0.0
    certificate: Certificate | None = None


Spec = TypeVar("Spec", EngineSpec, FrontSpec, GatewaySpec)


def read_spec(kind: type[Spec]) -> Spec:
    """Read the task from standard input.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
