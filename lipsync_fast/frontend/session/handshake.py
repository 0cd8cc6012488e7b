# SPDX-License-Identifier: Apache-2.0
"""What comes before a session of lipsync.v1, and the words for a client's mistakes."""

from __future__ import annotations

import trio

from lipsync_fast.errors import (
    ClosingError,
    ErrorCode,
    ForbiddenError,
    LipsyncError,
    ProtocolError,
    ReportedError,
)
from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.frontend.avatars.leases import AvatarLease
from lipsync_fast.frontend.services import Services
from lipsync_fast.frontend.session.shown_avatar import check_codec
from lipsync_fast_client.protocol import (
    ClientMessage,
    ErrorMessage,
    Ping,
    Pong,
    SessionStart,
    SessionStop,
    decode_client,
    encode,
)

MOST_ERRORS = 100
"""Mistakes that a client may make in one connection."""
NORMAL, GOING_AWAY, POLICY, INTERNAL_ERROR = 1000, 1001, 1008, 1011


async def begin(
    socket: Socket, services: Services, first: str | bytes | None
) -> tuple[SessionStart, AvatarLease]:
    """Take messages until one starts a session: what it wants, and its avatar, to be released.

    However much is said, that may take no longer than a client may be silent.
    """
    limit = services.config.limits.idle_s
    end = trio.current_time() + limit

    async def receive() -> str | bytes:
        with trio.move_on_at(end):
            return await socket.receive()
        raise ClosingError(POLICY, f"no session.start came within {limit:g} s")

    for _ in range(MOST_ERRORS):
        message = first
        if message is None:
            message = await services.admission.unless_draining(receive)
        if message is None:
            raise ClosingError(GOING_AWAY, "the server is going away")
        first = None
        try:
            wanted = _decoded(message)
            if isinstance(wanted, Ping):
                await socket.send(encode(Pong(id=wanted.id)))
                continue
            if isinstance(wanted, SessionStop):
                raise ClosingError(NORMAL, "stopped")
            if not isinstance(wanted, SessionStart):
                raise ProtocolError("expected session.start")
            if wanted.pace == "burst" and socket.subject.allowed.pace == "live":
                raise ForbiddenError("pace: the token allows live alone")
            lease = await services.avatars.lease(wanted.avatar, socket.subject)
            try:
                check_codec(services.pool, wanted.video)
            except LipsyncError:
                lease.release()
                raise
            return wanted, lease
        except LipsyncError as error:
            code = code_of(error)
            services.statistics.count_error(code)
            await socket.send(encode(ErrorMessage(code=code, message=str(error), fatal=False)))
    raise ClosingError(POLICY, f"{MOST_ERRORS} mistakes before session.start")


def silent(limit_s: float) -> ClosingError:
    """The end of a client that says nothing."""
    return ClosingError(POLICY, f"nothing was heard for {limit_s:g} s; send a ping now and then")


def _decoded(message: str | bytes) -> ClientMessage:
    if isinstance(message, bytes):
        raise ProtocolError("expected session.start, got a binary message")
    return decode_client(message)


def code_of(error: LipsyncError) -> ErrorCode:
    """The protocol's word for what went wrong."""
    return error.code if isinstance(error, ReportedError) else "internal"
