# SPDX-License-Identifier: Apache-2.0
"""All connections of a front, whichever port they came to: how many may be, what each speaks."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import trio

from lipsync_fast.errors import SocketClosedError
from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.frontend.legacy.service import LegacyService
from lipsync_fast.frontend.services import Services
from lipsync_fast.frontend.session.session import serve_native
from lipsync_fast.logs import get_logger
from lipsync_fast.tokens.accounts import Visit
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast.tokens.subject import ANYONE, Subject
from lipsync_fast_client.protocol import SUBPROTOCOL

log = get_logger("lipsync.front")
LOOK_S = 1.0
"""How often it is looked whether keys were revoked."""
REVOKED = "the key was revoked"
GOING_AWAY, POLICY, INTERNAL_ERROR, TRY_AGAIN_LATER = 1001, 1008, 1011, 1013


class _Kind(msgspec.Struct):
    type: object = None


_KIND = msgspec.json.Decoder(_Kind)


class Connections:
    """Counts connections, and hands each to its protocol."""

    def __init__(self, services: Services, legacy: LegacyService) -> None:
        self._services, self._legacy = services, legacy
        self._by_key: dict[Visit, Socket] = {}
        """Those whose client has shown an API key, or a JWT that a key has signed."""

    def refusal(self, subject: Subject, peer: str, counts: bool = True) -> Refusal | None:
        """Why somebody from that address cannot be served now; None where that can be.

        Args:
            counts: among the subject's sessions.
        """
        admission = self._services.admission
        if admission.draining.is_set():
            return Refusal(503, "connection", "the server is going away")
        if admission.full:
            return Refusal(503, "connection", "as many are connected as this server takes")
        return self._services.accounts.session_refusal(subject if counts else ANYONE, peer)

    async def serve(self, socket: Socket) -> None:
        """Speak with a client until it goes; nothing that happens to it hurts others."""
        statistics = self._services.statistics
        refusal = self.refusal(socket.subject, socket.peer, not socket.is_call)
        if refusal is not None:
            self._services.note_refused(refusal, socket.peer, socket.subject)
            await socket.close(TRY_AGAIN_LATER, refusal.message)
            return
        load = statistics.load
        load.connections += 1
        load.opened += 1
        visit = self._services.accounts.open(socket.subject, socket.peer, not socket.is_call)
        number, began = load.opened, time.monotonic()
        if socket.subject.by:
            self._by_key[visit] = socket
        self._note("begun", socket, number)
        try:
            await self._speak(socket, visit)
        except SocketClosedError:
            pass
        except Exception:
            log.exception("a connection has failed", peer=socket.peer)
            statistics.count_error("internal")
            visit.why = "internal error"
            await socket.close(INTERNAL_ERROR, "internal error")
        finally:
            load.connections -= 1
            visit.close()
            self._by_key.pop(visit, None)
            self._note(
                "ended",
                socket,
                number,
                protocol=visit.protocol,
                avatars=[*visit.avatars],
                seconds=round(time.monotonic() - began, 3),
                spoken_s=round(visit.spoken_s, 3),
                why=visit.why,
            )

    async def end_revoked(self) -> None:
        """End the connections of those whose keys are revoked, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(LOOK_S)
                for visit, socket in list(self._by_key.items()):
                    if self._services.entrance.is_revoked(visit.subject):
                        del self._by_key[visit]
                        visit.why = REVOKED
                        nursery.start_soon(socket.close, POLICY, REVOKED)

    def _note(self, event: str, socket: Socket, number: int, **more: Any) -> None:
        """Write it down; of calls, which are short, their end alone."""
        if socket.is_call and event == "begun":
            return
        audit, subject = self._services.audit, socket.subject
        audit.write(
            "call" if socket.is_call else event,
            session=f"{audit.process}/{number}",
            subject=subject.name,
            by=subject.by,
            key=subject.key,
            address=socket.peer,
            port=socket.port,
            **more,
        )

    async def _speak(self, socket: Socket, visit: Visit) -> None:
        if socket.subprotocol == SUBPROTOCOL:
            await serve_native(socket, visit, self._services, None)
            return
        limit = self._services.config.limits.idle_s
        first = None
        with trio.move_on_after(limit):
            first = await self._services.admission.unless_draining(socket.receive)
        if first is None and self._services.admission.draining.is_set():
            visit.why = "the server is going away"
            await socket.close(GOING_AWAY, "the server is going away")
        elif first is None:
            visit.why = "nothing was heard"
            await socket.close(POLICY, f"nothing was heard for {limit:g} s")
        elif isinstance(first, str) and _starts_session(first):
            await serve_native(socket, visit, self._services, first)
        else:
            await self._legacy.serve(socket, visit, first)


def _starts_session(text: str) -> bool:
    """Whether a first message is lipsync.v1's, of a client that has agreed on no subprotocol."""
    try:
        kind = _KIND.decode(text).type
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return False
    return kind == "session.start"
